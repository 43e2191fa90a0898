"""What an experiment or a trained model expects of the shards that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_seq.config.clean import (
    NORMALIZATION,
    CleanConfig,
    clean_of_corpus,
    later_defaults,
    recorded_options,
)
from ds_seq.config.data import DataConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.text_files import SplitConfig
from ds_seq.data.origin import BY_CORPUS, Expected
from ds_seq.text.lines import PairPath


def raw_files(data: DataConfig, split: str) -> list[PairPath]:
    """Return the raw files that an experiment names for a split; none for an unknown split."""
    train = [pair for pairs in data.train_files.values() for pair in pairs]
    raw = {"train": train, "valid": data.raw.valid, "test": data.raw.test}
    return [path for text in raw.get(split, []) for path in text_files(text)]


def text_files(text: SplitConfig) -> list[PairPath]:
    """Return the raw files of a text."""
    return [PairPath(Path(text.source), Path(text.target))]


def cleaning_by_corpus(data: DataConfig) -> dict[str, CleanConfig]:
    """Return the options of cleaning of each corpus of `data.corpora`, or of the training text."""
    if not data.corpora:
        return {"train": clean_of_corpus(data.clean, data.languages)}
    return {
        name: clean_of_corpus(data.clean, corpus.pair(data.languages), corpus.clean)
        for name, corpus in data.corpora.items()
    }


def clean_options(data: DataConfig, split: str) -> dict[str, Any]:
    """Return the options of cleaning that apply to a split: only training text is filtered.

    With corpora, `BY_CORPUS` has the options of each that has others than the split.
    """
    clean = clean_of_corpus(data.clean, data.languages)
    options = recorded_options(clean, normalization_only=split != "train")
    if split != "train" or not data.corpora:
        return options
    others = {}
    whole = {**later_defaults(), **options}
    for name, config in cleaning_by_corpus(data).items():
        own = {**later_defaults(), **recorded_options(config)}
        others[name] = {key: value for key, value in own.items() if value != whole[key]}
    others = {name: own for name, own in others.items() if own}
    return {**options, BY_CORPUS: others} if others else options


def vocab_options(data: DataConfig) -> dict[str, Any]:
    """Return the options of the vocabulary, but only the name of a file, wherever it is found."""
    options = data.vocab.model_dump(mode="json")
    if options["normalization"].endswith(".tsv"):
        options["normalization"] = Path(options["normalization"]).name
    return options


def expected_by_experiment(data: DataConfig, split: str) -> Expected:
    """Return what an experiment expects of the shards of a split."""
    return Expected(
        languages=(data.source_lang, data.target_lang),
        raw=tuple(raw_files(data, split)),
        clean=clean_options(data, split),
        clean_defaults=later_defaults(),
        vocab=vocab_options(data),
        corpora=tuple(data.corpora) if split == "train" else (),
    )


def expected_by_model(
    name: str, languages: tuple[str, str], experiment: ExperimentConfig | None
) -> Expected:
    """Return what a trained model expects of shards, which need not be those of its training.

    Args:
        name: what messages call the model.
        languages: language codes of its source and target.
        experiment: the experiment of its training, if it is known.
    """
    clean = None if experiment is None else clean_options(experiment.data, "valid")
    return Expected(languages, name, clean=clean, clean_defaults=later_defaults(NORMALIZATION))
