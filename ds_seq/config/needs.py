"""What `ds-seq prepare` and `ds-seq train` would miss on this machine; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from os.path import exists, isfile
from pathlib import Path
from typing import NamedTuple

from typing_extensions import TypedDict

from ds_seq.config.clean import clean_of_corpus
from ds_seq.config.data import FairseqConfig, ShardsConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.raw_text import TextFiles, named_texts
from ds_seq.errors import UserError
from ds_seq.names import SPLITS
from ds_seq.records import Count, read_json, record


@record
class ShardSize(TypedDict):
    """Number of pairs and tokens of a shard."""

    pairs: Count
    src_tokens: Count
    tgt_tokens: Count


@record
class TrainManifest(TypedDict):
    """The part of the manifest of training shards from which epochs are computed."""

    shards: list[ShardSize]


class Needs(NamedTuple):
    """What a run would miss, one line each, with the key.

    Attributes:
        errors: files that should be there, and are not.
        notes: text that has not been fetched yet: not even its folder exists.
    """

    errors: list[str]
    notes: list[str]


def unmet(config: ExperimentConfig) -> Needs:
    """Return what is missing on this machine, as seen from the working folder."""
    errors = [f"{key}: {problem}" for key, problem in _missing(config)]
    notes: list[str] = []
    if not exists(config.data.dir):  # a shipped example, before its text is fetched
        for key, text in _present(config):
            for path in map(Path, text.names):
                line = f"{key}: {path}: no such file"
                if line in errors and not exists(path.parent):
                    errors.remove(line)
                    notes.append(f"{line}; its folder does not exist yet, either")
    if errors:
        errors.append(
            f"these paths are seen from {Path.cwd()}: correct them, or use `ds-seq check "
            "--elsewhere` if the run is for another machine"
        )
    return Needs(errors, notes)


def train_manifest(config: ExperimentConfig) -> TrainManifest | None:
    """Return the manifest of the training shards, or None if there is none that can be read."""
    path = Path(config.data.dir) / "train.manifest.json"
    if not exists(path):
        return None
    try:
        return read_json(path, TrainManifest, "run `ds-seq prepare` again")
    except UserError:
        return None


def _missing(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    if isinstance(config.data.source, ShardsConfig):
        yield from _missing_text(config)
    elif isinstance(config.data.source, FairseqConfig):
        for folder in config.data.source.folders:
            yield from _absent("data.source.folders", folder, "folder")
    if config.train.init_from is not None:
        yield from _absent("train.init_from", config.train.init_from, "run or exported model")
    if config.reads_language_model:
        assert config.model.language_model is not None
        path = config.model.language_model.path
        yield from _absent("model.encoder_input.path", path, "run or exported model")
    where, _ = config.base_criterion
    criterion = config.distillation
    if criterion is None:
        return
    teachers = criterion.teacher if criterion.teacher is not None else []
    for teacher in [teachers] if isinstance(teachers, str) else teachers:
        yield from _absent(f"{where}.teacher", teacher, "run or exported model")
    if criterion.cache is not None:
        yield from _absent(f"{where}.cache", criterion.cache, "folder; see `ds-seq teacher-cache`")


def _missing_text(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    folder, train = Path(config.data.dir), config.train
    is_prepared = isfile(folder / "train.manifest.json")
    validates = train.validate_every is not None
    if not is_prepared and not config.data.entries("train"):
        yield (
            "data.raw.train",
            f"missing, and data.dir {folder} has no shards; name the training text, such as "
            "{source: corpus.en, target: corpus.de}",
        )
    if validates and not _has_valid(config) and not isfile(folder / "valid.manifest.json"):
        yield (
            "data.raw.valid",
            "missing: name the validation text, or set train.validate_every=null and "
            "train.save_every",
        )
    if not is_prepared:
        yield from _missing_vocab(config)
        for key, name in _files_of_cleaning(config):
            yield from _absent(key, name, "file")
    yield from _missing_raw(config, is_prepared)


def _missing_raw(config: ExperimentConfig, is_prepared: bool) -> Iterator[tuple[str, str]]:
    """Yield the files and folders of raw text that are not there, if they are read."""
    validates = config.train.validate_every is not None and bool(config.validation.metrics)
    for split in SPLITS:
        # training reads the shards, and the validation text as the reference of its metrics
        if is_prepared and not (split == "valid" and validates):
            continue
        if problem := _folder_problem(config, split):
            key, _, reason = problem.partition(": ")
            yield key, reason
            continue
        for key, text in named_texts(config.data, split):
            for path in text.names:
                yield from _absent(key, path, "file")
            if text.alignments is not None and not is_prepared:
                yield from _absent(f"{key}.alignments", text.alignments, "file")


def _present(config: ExperimentConfig) -> Iterator[tuple[str, TextFiles]]:
    """Yield the raw texts of all splits, those of folders as far as they exist."""
    for split in SPLITS:
        if _folder_problem(config, split) is None:
            yield from named_texts(config.data, split)


def _files_of_cleaning(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    for key, name in config.data.clean.named_files():
        yield f"data.clean.{key}", name
    for corpus, section in config.data.corpora.items():
        pair = section.pair(config.data.languages)
        clean = clean_of_corpus(config.data.clean, pair, section.clean)
        for key, name in clean.named_files():
            if key in section.clean:
                yield f"data.corpora.{corpus}.clean.{key}", name


def _has_valid(config: ExperimentConfig) -> bool:
    """Return whether there is validation text, or should be where a folder is missing."""
    if _folder_problem(config, "valid") is not None:
        return True
    return bool(named_texts(config.data, "valid"))


def _folder_problem(config: ExperimentConfig, split: str) -> str | None:
    """Return what is wrong with a folder that should have a split."""
    try:
        named_texts(config.data, split)
    except UserError as error:
        return str(error)
    return None


def _missing_vocab(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    for side, vocab in config.data.vocab.parts.items():
        where = f"data.vocab.{side}" if side else "data.vocab"
        if vocab.normalization.endswith(".tsv"):
            yield from _absent(f"{where}.normalization", vocab.normalization, "file")
        if vocab.made_elsewhere is not None:
            kind, section = vocab.made_elsewhere
            for key, path in section.files.items():
                what = "folder" if key == "path" else "file"
                yield from _absent(f"{where}.{kind}.{key}", path, what)


def _absent(key: str, path: str, kind: str) -> Iterator[tuple[str, str]]:
    if not exists(path):
        yield key, f"{path}: no such {kind}"
