"""What an experiment or a trained model expects of the shards that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_seq.config.clean import (
    NORMALIZATION,
    clean_of_corpus,
    later_defaults,
    recorded_options,
)
from ds_seq.config.data import DataConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.vocab import VocabFields
from ds_seq.data.origin import Expected
from ds_seq.text.lines import PairPath


def raw_files(data: DataConfig, split: str) -> list[PairPath]:
    """Return the raw files that an experiment names for a split; none for an unknown split."""
    raw = {"train": data.raw.train, "valid": data.raw.valid, "test": data.raw.test}
    return [PairPath(Path(pair.source), Path(pair.target)) for pair in raw.get(split, [])]


def alignment_files(data: DataConfig, split: str) -> list[Path | None]:
    """Return the file of alignments of each of `raw_files`; None where there is none."""
    raw = {"train": data.raw.train, "valid": data.raw.valid, "test": data.raw.test}
    names = [pair.alignments for pair in raw.get(split, [])]
    return [None if name is None else Path(name) for name in names]


def clean_options(data: DataConfig, split: str) -> dict[str, Any]:
    """Return the options of cleaning that apply to a split: only training text is filtered."""
    clean = clean_of_corpus(data.clean, (data.source_lang, data.target_lang))
    return recorded_options(clean, normalization_only=split != "train")


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
    if vocab.fairseq is None:
        del options["fairseq"]
    else:
        options["fairseq"] |= {key: Path(file).name for key, file in vocab.fairseq.files.items()}
    return options


def expected_by_experiment(data: DataConfig, split: str) -> Expected:
    """Return what an experiment expects of the shards of a split."""
    return Expected(
        languages=(data.source_lang, data.target_lang),
        raw=tuple(raw_files(data, split)),
        clean=clean_options(data, split),
        clean_defaults=later_defaults(),
        vocab=vocab_options(data),
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
