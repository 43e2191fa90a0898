"""Open a trained model: a run folder, or what ``ds-seq export`` has made of one.

A run folder holds ``config.yaml``, ``vocab.model`` and checkpoints; an exported folder the same two
files and ``model.safetensors``; an exported file has config and vocabulary inside it. Nothing here
imports DeepSpeed, unless experts are spread over ranks.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import nn

from ds_seq import distributed
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import load_experiment
from ds_seq.config.messages import error_lines
from ds_seq.config.model import ModelConfig
from ds_seq.config.yaml_file import parse_value
from ds_seq.distributed.device import avoid_cudnn_attention
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.text.build import load_tokenizers, read_tokenizers
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.text.vocab_file import VOCAB_FILE
from ds_seq.weights.fill import fill
from ds_seq.weights.source import (
    CHECKPOINTS,
    INDEX_FILE,
    META_FILE,
    VOCAB_HASH_KEY,
    TensorFile,
    TensorFolder,
    TensorSource,
    read_meta,
)

CONFIG_FILE = "config.yaml"
EXPORT_FILE = "model.safetensors"
EXPORT_SUFFIX = ".safetensors"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# in the header of an exported file
CONFIG_KEY = "ds_seq.config"
VOCAB_KEY = "ds_seq.vocab"


@dataclass(frozen=True)
class StoredRun:
    """A trained model on disk: what it is, and where its tensors are."""

    config: ExperimentConfig
    tokenizers: Tokenizers
    weights: TensorSource


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with what it takes to use it."""

    config: ExperimentConfig
    tokenizers: Tokenizers
    model: nn.Module
    source: Path
    """The checkpoint folder or file that the weights came from."""


def open_run(run: str | Path, checkpoint: str = "best") -> StoredRun:
    """Read all of ``run`` but its tensors.

    Args:
        run: a run folder, an exported folder or an exported file.
        checkpoint: ``best``, ``last``, the name of a checkpoint or a path. Of an export, which
            holds one state, ``best`` and ``last`` are that. A folder with checkpoints is a run,
            even if somebody exported it into itself.

    Raises:
        UserError: something is missing or damaged, or an export is asked for another checkpoint.
    """
    path = Path(run)
    if path.is_file():
        _check_only_state(path, checkpoint)
        return _open_exported(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder or exported file")
    for name in (CONFIG_FILE, VOCAB_FILE):
        if not (path / name).is_file():
            raise UserError(f"{path}: not a run folder ({name} is missing)")
    config = load_experiment(path / CONFIG_FILE)
    tokenizers = load_tokenizers(config.data, path / VOCAB_FILE)
    exported = path / EXPORT_FILE
    if exported.is_file() and not (path / CHECKPOINTS).is_dir():
        _check_only_state(path, checkpoint)
        file = TensorFile(exported)
        _check_vocab(path, tokenizers, exported, file.metadata())
        return StoredRun(config, tokenizers, file)
    folder = find_checkpoint(path, checkpoint)
    _check_vocab(path, tokenizers, folder, read_meta(folder))
    return StoredRun(config, tokenizers, TensorFolder(folder, "weights"))


def open_tokenizers(run: Path) -> Tokenizers:
    """Read the tokenizers of a run folder or an exported folder, of the kind that its config names.

    Raises:
        UserError: one of the two files is missing or damaged.
    """
    return load_tokenizers(load_experiment(run / CONFIG_FILE).data, run / VOCAB_FILE)


def load_run(
    run: str | Path,
    checkpoint: str = "best",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    expert_parallel: int = 1,
) -> LoadedRun:
    """Build the model of ``run`` and load its weights.

    Args:
        run: see `open_run`.
        checkpoint: likewise.
        device: where the model goes.
        dtype: its precision; ``None`` takes that of the training on a GPU, float32 on a CPU.
            Whole numbers among its buffers stay whole numbers.
        expert_parallel: ranks to spread the experts over; a collective when more than 1.

    Returns:
        The model in evaluation mode, with config and tokenizers.

    Raises:
        UserError: something is missing, damaged or does not fit together.
    """
    stored = open_run(run, checkpoint)
    config = stored.config
    _check_spread(stored.weights.path, config.model, expert_parallel)
    part = distributed.rank() % expert_parallel
    size = stored.tokenizers.size
    model = build_model(config.model, size, expert_parallel, part, config.train.seed)
    fill(model, stored.weights)
    if expert_parallel > 1:
        from ds_seq.moe.engine import connect_expert_parallel

        connect_expert_parallel(model, expert_parallel)
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        avoid_cudnn_attention()
    if dtype is None:
        dtype = DTYPES[config.train.precision] if on_gpu else torch.float32
    model.requires_grad_(False).eval().to(device=device, dtype=dtype)
    return LoadedRun(config, stored.tokenizers, model, stored.weights.path)


def _check_spread(path: Path, model: ModelConfig, expert_parallel: int) -> None:
    """Refuse a number of ranks over which the experts cannot be spread evenly."""
    for count in [] if model.moe is None else model.moe.counts:
        if count % expert_parallel:
            raise UserError(
                f"{path}: {count} experts of a layer cannot be spread over {expert_parallel} "
                f"ranks; ask for a divisor of {count} (--expert-parallel)"
            )


def find_checkpoint(run: Path, which: str) -> Path:
    """Folder of the checkpoint ``best``, ``last``, a name, or a path.

    Raises:
        UserError: there is none.
    """
    checkpoints = run / CHECKPOINTS
    if which in ("best", "last"):
        try:
            index = json.loads((checkpoints / INDEX_FILE).read_text(encoding="utf-8"))
            # a run without validations has no best one
            entry = index["best"][0] if which == "best" and index["best"] else index["last"][-1]
            return checkpoints / str(entry["name"])
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{run}: has no finished checkpoint; train it first") from error
    for path in (checkpoints / which, Path(which)):
        if (path / META_FILE).is_file():
            return path
    known = sorted(p.parent.name for p in checkpoints.glob(f"update_*/{META_FILE}"))
    raise UserError(f"{run}: no checkpoint {which!r}; there are best, last, {', '.join(known)}")


def _check_vocab(
    run: Path, tokenizers: Tokenizers, weights: Path, notes: Mapping[str, Any]
) -> None:
    """Refuse another vocabulary than that of the training: one as large gives plausible nonsense.

    Older weights do not say which it was.
    """
    fingerprint = tokenizers.fingerprint
    trained_with = notes.get(VOCAB_HASH_KEY, fingerprint)
    if trained_with != fingerprint:
        raise UserError(
            f"{run / VOCAB_FILE}: is vocabulary {fingerprint[:12]}, but {weights} was trained with "
            f"{trained_with[:12]}; put that one back"
        )


def _check_only_state(path: Path, checkpoint: str) -> None:
    """Refuse to look for a certain checkpoint in an export."""
    if checkpoint not in ("best", "last"):
        raise UserError(
            f"{path}: is an export, which holds one state and no checkpoint {checkpoint!r}; "
            "ask for the best or name the run folder"
        )


def _open_exported(path: Path) -> StoredRun:
    if path.suffix != EXPORT_SUFFIX:
        raise UserError(f"{path}: neither a run folder nor a file that `ds-seq export` made")
    weights = TensorFile(path)
    header = weights.metadata()
    if CONFIG_KEY not in header or VOCAB_KEY not in header:
        raise UserError(
            f"{path}: has no experiment and vocabulary in it; name the folder that holds it and "
            f"them, or export again with --out NAME{EXPORT_SUFFIX}"
        )
    try:
        data = parse_value(header[CONFIG_KEY])
        config = ExperimentConfig.model_validate(data)
        content = base64.b64decode(header[VOCAB_KEY], validate=True)
    except ValidationError as error:
        raise UserError("\n".join(error_lines(error, data, lambda _: str(path)))) from None
    except (yaml.YAMLError, binascii.Error) as error:
        raise UserError(f"{path}: damaged ({error}); export it again") from error
    tokenizers = read_tokenizers(config.data, content, f"{path}: vocabulary")
    return StoredRun(config, tokenizers, weights)
