"""Trained models: opened, exported, and made into others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from ds_seq import distributed
from ds_seq.errors import UserError
from ds_seq.names import ExportFormat, Precision
from ds_seq.plugins import nearest, trusting
from ds_seq.runs.export import export as write_export
from ds_seq.runs.fewer_layers import KeptLayers
from ds_seq.runs.open import DTYPES, INT8, ModelParts, load_packed, parse_device
from ds_seq.trained_model import TrainedModel


def load(
    path: str | Path,
    *,
    checkpoint: str = "best",
    device: str | torch.device | None = None,
    dtype: Literal["fp32", "bf16", "fp16", "int8"] | torch.dtype | None = None,
    trust: Sequence[str] = (),
    adapter: str | None = None,
    part: str | Path | None = None,
    layers: KeptLayers | None = None,
) -> TrainedModel:
    """Load a trained model.

    Args:
        path: a run folder, or a file or folder written by `ds-seq export`.
        checkpoint: `best`, `last`, the name of a checkpoint or a path.
        device: device such as `cpu` or `cuda:1`; None: a GPU if there is one.
        dtype: number format; None: as in training on a GPU, fp32 on a CPU. `int8` quantizes the
            weights and works only on a CPU.
        trust: names of code from outside ds_seq (`package.module:Name`) that may run if the model
            names it.
        adapter: adapter that all sentences pass through, or `none`; None: as the model's config
            says, by the tag of a sentence. See `TrainedModel.use_adapter`.
        part: file written by `ds-seq export --only`: adapters or low-rank changes for this model.
        layers: indices (from 0) of the layers to use, such as `{"encoder": [0, 2, 4]}`; None: all.

    Raises:
        UserError: the model, device, adapter or number format does not exist, or the model names
            code that is not trusted.
    """
    place = distributed.World().device if device is None else parse_device(str(device))
    with trusting(trust):
        parts = ModelParts(adapter, part, layers)
        run = load_packed(path, checkpoint, _dtype_name(dtype), place, parts=parts)
    return TrainedModel(run, place)


def export(
    run: str | Path,
    out: str | Path,
    *,
    checkpoint: str = "best",
    dtype: Precision = "fp32",
    format: ExportFormat = "safetensors",
    only: Sequence[str] = (),
    merge_lora: bool = False,
) -> Path:
    """Write a trained model for use on any machine, like `ds-seq export`.

    Args:
        run: run folder, or an earlier export.
        out: new file, if its name ends in `.safetensors`, or folder.
        checkpoint: `best`, `last`, the name of a checkpoint or a path.
        dtype: number format of the weights.
        format: `safetensors` and `bitnet` are for ds_seq, `ctranslate2` and `hf` for CTranslate2
            and transformers.
        only: parts to write instead of the whole model: `lora`, `adapters` or `adapters.ID`.
        merge_lora: whether to merge low-rank changes into the weights.

    Returns:
        The file of the weights.

    Raises:
        UserError: `out` exists, the run is damaged, or the other program has no such model.
    """
    return write_export(Path(run), Path(out), checkpoint, dtype, format, merge_lora, only)


def _dtype_name(dtype: str | torch.dtype | None) -> str | None:
    names = {value: name for name, value in DTYPES.items()}
    if isinstance(dtype, torch.dtype):
        dtype = names.get(dtype, str(dtype))
    known = [*DTYPES, INT8]
    if dtype is not None and dtype not in known:
        hint = nearest(dtype, known)
        raise UserError(f"no number format {dtype!r}{hint}; there are {', '.join(known)}")
    return dtype
