"""Open a run folder, or a folder written by ``ds-seq export``, for translation.

Both hold ``config.yaml`` and ``vocab.model``; a run folder has checkpoints beside them, an exported
one ``model.safetensors``. Nothing here imports DeepSpeed, unless experts are spread over ranks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ds_seq import distributed
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import load_experiment
from ds_seq.data.vocab import Vocab
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.models.weights import (
    CHECKPOINTS,
    INDEX_FILE,
    META_FILE,
    expert_offsets,
    load_weights,
)

CONFIG_FILE = "config.yaml"
VOCAB_FILE = "vocab.model"
EXPORT_FILE = "model.safetensors"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with what it takes to use it."""

    config: ExperimentConfig
    vocab: Vocab
    model: nn.Module
    source: Path
    """The checkpoint folder or file that the weights came from."""


def load_run(
    run: str | Path,
    checkpoint: str = "best",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    expert_parallel: int = 1,
) -> LoadedRun:
    """Build the model of ``run`` and load its weights.

    Args:
        run: a run folder or an exported folder.
        checkpoint: ``best``, ``last``, the name of a checkpoint or a path; ignored for an exported
            folder.
        device: where the model goes.
        dtype: its precision; ``None`` takes that of the training on a GPU, float32 on a CPU.
        expert_parallel: ranks to spread the experts over; a collective when more than 1.

    Returns:
        The model in evaluation mode, with config and vocabulary.

    Raises:
        UserError: something is missing, damaged or does not fit together.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    for name in (CONFIG_FILE, VOCAB_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: not a run folder ({name} is missing)")
    config = load_experiment(folder / CONFIG_FILE)
    vocab = Vocab.load(folder / VOCAB_FILE)
    part = distributed.rank() % expert_parallel
    model = build_model(config.model, len(vocab), expert_parallel, part, config.train.seed)
    exported = folder / EXPORT_FILE
    if exported.is_file():
        source = exported
        _load_exported(model, exported)
    else:
        source = find_checkpoint(folder, checkpoint)
        load_weights(model, source)
    if expert_parallel > 1:
        from ds_seq.moe.engine import connect_expert_parallel

        connect_expert_parallel(model, expert_parallel)
    if dtype is None:
        on_gpu = torch.device(device).type == "cuda"
        dtype = DTYPES[config.train.precision] if on_gpu else torch.float32
    model.requires_grad_(False).eval().to(device=device, dtype=dtype)
    return LoadedRun(config, vocab, model, source)


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


@torch.no_grad()
def _load_exported(model: nn.Module, path: Path) -> None:
    """One file, all experts stacked; a rank that holds some of them reads only those."""
    offsets = expert_offsets(model)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            keys = set(file.keys())
            for name, parameter in model.named_parameters():
                if name not in keys:
                    raise UserError(f"{path}: has no tensor {name!r}; it is of another model")
                first = offsets.get(name)
                part = file.get_slice(name)
                value = part[:] if first is None else part[first : first + len(parameter)]
                if value.shape != parameter.shape:
                    raise UserError(
                        f"{path}: {name} has shape {tuple(value.shape)}, the model wants "
                        f"{tuple(parameter.shape)}"
                    )
                parameter.copy_(value)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); export it again") from error
