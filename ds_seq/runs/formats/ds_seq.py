"""The formats of ds_seq itself: run folders, and exports made by `ds-seq export`.

A run folder holds `config.yaml`, `vocab.model` (or `vocab.source.model` and `vocab.target.model`)
and checkpoints; an exported folder holds the same files and `model.safetensors`, or `linked.json`,
which names a Hugging Face folder with the weights; an exported file contains config and vocabulary
in its header.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import load_experiment, parse_experiment
from ds_seq.config.outside import LOADING, TOKENIZING
from ds_seq.errors import UserError

# used from here by those who read runs
from ds_seq.names import CONFIG_FILE as CONFIG_FILE
from ds_seq.names import EXPORT_FILE as EXPORT_FILE
from ds_seq.names import EXPORT_SUFFIX as EXPORT_SUFFIX
from ds_seq.names import TRAINING_ONLY
from ds_seq.runs.card import ModelCard, StoredRun
from ds_seq.runs.formats.huggingface.source import LINK_FILE, open_link
from ds_seq.text.build import load_tokenizers, read_tokenizers
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.text.vocab_file import vocab_paths
from ds_seq.weights.meta import (
    CHECKPOINTS,
    EMA,
    INDEX_FILE,
    META_FILE,
    RAW,
    VOCAB_HASH_KEY,
    CheckpointFiles,
    known_checkpoints,
    read_index,
    read_meta,
    without_index,
)
from ds_seq.weights.packed import open_file
from ds_seq.weights.source import TensorFolder, TensorSource

# keys in the header of an exported file; of a folder's, the checksum of CONFIG_FILE
CONFIG_HASH_KEY = "ds_seq.config_sha256"
CONFIG_KEY = "ds_seq.config"
VOCAB_KEY = "ds_seq.vocab"
_SIDE_KEYS = ("ds_seq.vocab.source", "ds_seq.vocab.target")


def vocab_keys(joint: bool) -> tuple[str, ...]:
    """Return the keys of the vocabulary in the header of an exported file."""
    return (VOCAB_KEY,) if joint else _SIDE_KEYS


class RunFolder:
    """Reader of run folders and exported folders.

    A folder with checkpoints is a run folder, even if it also contains an export.
    """

    def detects(self, path: Path) -> bool:
        """Return whether the folder contains an experiment."""
        return (path / CONFIG_FILE).is_file()

    def open(self, path: Path, checkpoint: str) -> StoredRun:
        """Open a model without reading its tensors; see `ds_seq.runs.formats.Format.open`."""
        config = load_experiment(path / CONFIG_FILE, runs=LOADING)
        vocab = vocab_paths(path, config.data.vocab.joint)
        for part in vocab:
            if not part.is_file():
                raise UserError(f"{path}: not a run folder ({part.name} is missing)")
        tokenizers = load_tokenizers(config.data, path)
        exported = path / EXPORT_FILE
        if exported.is_file() and not (path / CHECKPOINTS).is_dir():
            _check_only_state(path, checkpoint)
            file = open_file(exported)
            _check_vocab(vocab, tokenizers, exported, file.metadata())
            return _stored(config, tokenizers, file)
        if (path / LINK_FILE).is_file() and not (path / CHECKPOINTS).is_dir():
            _check_only_state(path, checkpoint)
            return _stored(config, tokenizers, open_link(path / LINK_FILE, tokenizers))
        name, kind = split_kind(checkpoint)
        folder = find_checkpoint(path, name)
        _check_vocab(vocab, tokenizers, folder, read_meta(folder))
        stored = _stored(config, tokenizers, checkpoint_weights(folder, kind))
        return replace(stored, suffix=checkpoint.removeprefix(name))


class ExportedFile:
    """Reader of exported files, which have experiment and vocabulary in their header."""

    def detects(self, path: Path) -> bool:
        """Return whether `path` is a file with the suffix of exports."""
        return path.is_file() and path.suffix == EXPORT_SUFFIX

    def open(self, path: Path, checkpoint: str) -> StoredRun:
        """Open a model without reading its tensors; see `ds_seq.runs.formats.Format.open`."""
        _check_only_state(path, checkpoint)
        weights = open_file(path)
        header = weights.metadata()
        config = _config_of(path, header)
        keys = vocab_keys(config.data.vocab.joint)
        if not header.keys() >= set(keys):
            raise _explain_no_parts(path)
        try:
            contents = [base64.b64decode(header[key], validate=True) for key in keys]
        except ValueError as error:
            raise UserError(f"{path}: damaged (vocabulary: {error}); export it again") from None
        tokenizers = read_tokenizers(config.data, contents, [f"{path}: vocabulary"] * len(keys))
        return _stored(config, tokenizers, weights)


def _config_of(path: Path, header: Mapping[str, str]) -> ExperimentConfig:
    if CONFIG_KEY not in header:
        raise _explain_no_parts(path)
    return parse_experiment(header[CONFIG_KEY].encode(), path, LOADING)


def _explain_no_parts(path: Path) -> UserError:
    return UserError(
        f"{path}: contains no experiment and vocabulary; give the folder that holds all three, or "
        f"export again with --out NAME{EXPORT_SUFFIX}"
    )


def _stored(config: ExperimentConfig, tokenizers: Tokenizers, weights: TensorSource) -> StoredRun:
    card = ModelCard.of_experiment(config, tokenizers)
    return StoredRun(card, config.model, weights, config)


def open_tokenizers(run: Path) -> Tokenizers:
    """Load the tokenizers of a run folder or an exported folder.

    Raises:
        UserError: the config or the vocabulary is missing or damaged.
    """
    config = load_experiment(run / CONFIG_FILE, runs=TOKENIZING)
    return load_tokenizers(config.data, run)


def split_kind(checkpoint: str) -> tuple[str, str | None]:
    """Split the kind of weights, `raw` or `ema`, from the end of the name of a checkpoint."""
    for kind in (RAW, EMA):
        if checkpoint.endswith(f":{kind}"):
            return checkpoint.removesuffix(f":{kind}"), kind
    return checkpoint, None


def checkpoint_weights(folder: Path, kind: str | None) -> TensorFolder:
    """Open the weights of the model in a checkpoint, without what only its training needs.

    Args:
        folder: folder of the checkpoint.
        kind: `raw`, or `ema` for the average of the weights; None: the average if there is one.

    Raises:
        UserError: there is no average, or a file is damaged.
    """
    meta: CheckpointFiles = read_meta(folder)
    has_average = any(name.split(".")[0] == EMA for name in meta["files"])
    if kind == EMA and not has_average:
        raise UserError(
            f"{folder}: has no average of the weights, which training with train.ema makes; leave "
            f"out :{EMA}"
        )
    average = None if kind == RAW else EMA
    return TensorFolder(folder, "weights", replaced_by=average, without=TRAINING_ONLY)


def find_checkpoint(run: Path, which: str) -> Path:
    """Return the folder of a checkpoint.

    Args:
        run: the run folder.
        which: `best`, `last`, the name of a checkpoint, or a path.

    Raises:
        UserError: there is no such checkpoint.
    """
    checkpoints = run / CHECKPOINTS
    if which in ("best", "last"):
        try:
            index = read_index(checkpoints)
            # a run without validations has no best checkpoint
            entry = index["best"][0] if which == "best" and index["best"] else index["last"][-1]
        except (FileNotFoundError, IndexError):
            raise UserError(_explain_no_index(run)) from None
        return _whole(checkpoints / entry["name"])
    for path in (checkpoints / which, Path(which)):
        if (path / META_FILE).is_file():
            return path
    raise UserError(
        f"{run}: no checkpoint {which!r}; there are best, last, "
        f"{', '.join(known_checkpoints(checkpoints))}"
    )


def _whole(folder: Path) -> Path:
    """Return the folder of a checkpoint, which may still have the name of a replaced one.

    It has if a training was killed, or is just now, between the two renames of a second save.
    """
    old = folder.with_name(f"{folder.name}.replaced")
    return old if old.is_dir() and not folder.exists() else folder


def _explain_no_index(run: Path) -> str:
    checkpoints = run / CHECKPOINTS
    if known_checkpoints(checkpoints):
        return (
            f"{run}: has no finished checkpoint in {checkpoints / INDEX_FILE}, which is missing "
            f"or empty; {without_index(checkpoints)}"
        )
    return f"{run}: has no finished checkpoint; train it first"


def _check_vocab(
    vocab: Sequence[Path], tokenizers: Tokenizers, weights: Path, notes: Mapping[str, Any]
) -> None:
    """Reject a vocabulary other than the one used in training.

    A different vocabulary of the same size would translate into plausible nonsense. Older weights
    do not record their vocabulary and are not checked.
    """
    fingerprint = tokenizers.fingerprint
    trained_with = notes.get(VOCAB_HASH_KEY, fingerprint)
    if trained_with != fingerprint:
        names = " and ".join(map(str, vocab))
        raise UserError(
            f"{names}: is vocabulary {fingerprint[:12]}, but {weights} was trained with "
            f"{str(trained_with)[:12]}; restore that vocabulary"
        )


def _check_only_state(path: Path, checkpoint: str) -> None:
    """Reject a request for a specific checkpoint of an export."""
    if checkpoint not in ("best", "last"):
        raise UserError(
            f"{path}: is an export, which holds a single state and no checkpoint {checkpoint!r}; "
            "use best, or give the run folder"
        )
