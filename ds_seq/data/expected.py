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
from ds_seq.config.raw_text import named_texts, text_files
from ds_seq.config.text_files import SplitConfig
from ds_seq.config.vocab import VocabFields
from ds_seq.data.origin import BY_CORPUS, Expected
from ds_seq.errors import UserError
from ds_seq.text.lines import PairPath
from ds_seq.text.raw import pair_path


def raw_files(data: DataConfig, split: str, must_exist: bool = True) -> list[PairPath]:
    """Return the raw text that an experiment names for a split; none for an unknown split.

    Args:
        data: the section.
        split: name of the split.
        must_exist: whether a folder must have the files; other files are looked for when read.

    Raises:
        UserError: a folder does not have the text that it was named for.
    """
    texts = named_texts(data, split, must_exist)
    return [pair_path(text, counts_invalid=split == "train") for _, text in texts]


def files_of(data: DataConfig, split: str, entry: SplitConfig) -> list[PairPath]:
    """Return the raw text that one entry of a split, or a corpus, names."""
    texts = text_files(entry, split, entry.pair(data.languages), must_exist=False)
    return [pair_path(text, counts_invalid=split == "train") for text in texts]


def alignment_files(data: DataConfig, split: str) -> list[Path | None]:
    """Return the file of alignments of each of `raw_files`; None where there is none."""
    texts = named_texts(data, split, must_exist=False)
    return [None if text.alignments is None else Path(text.alignments) for _, text in texts]


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
    """Return the options of the vocabulary, but only the name of a file, wherever it is found.

    Those of two vocabularies have keys such as `source.size`.
    """
    options: dict[str, Any] = {"joint": data.vocab.joint}
    for side, vocab in data.vocab.parts.items():
        own = side_options(vocab)
        options |= {f"{side}.{key}": own[key] for key in own} if side else own
    return options


def side_options(vocab: VocabFields) -> dict[str, Any]:
    """Return the options of one vocabulary, but only the names of files."""
    options = vocab.model_dump(mode="json", include=set(VocabFields.model_fields))
    if options["normalization"].endswith(".tsv"):
        options["normalization"] = Path(options["normalization"]).name
    for key in ("fairseq", "huggingface"):
        if options[key] is None:
            del options[key]
    if vocab.made_elsewhere is not None:
        key, section = vocab.made_elsewhere
        options[key] |= {name: Path(file).name for name, file in section.files.items()}
    return options


def expected_by_experiment(data: DataConfig, split: str) -> Expected:
    """Return what an experiment expects of the shards of a split."""
    return Expected(
        languages=(data.source_lang, data.target_lang),
        raw=_raw_here(data, split),
        clean=clean_options(data, split),
        clean_defaults=later_defaults(),
        vocab=vocab_options(data),
        corpora=tuple(data.corpora) if split == "train" else (),
    )


def _raw_here(data: DataConfig, split: str) -> tuple[PairPath, ...]:
    """Return the raw text; none if it is in a folder that is not on this machine."""
    try:
        return tuple(raw_files(data, split))
    except UserError:
        return ()


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
