"""Open trained models of any format; see `ds_seq.runs.formats`.

DeepSpeed is imported only if experts are distributed over ranks.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch

from ds_seq import distributed
from ds_seq.config.model import ModelConfig
from ds_seq.config.model.upgrade import stable_json
from ds_seq.distributed.device import choose_gpu_kernels
from ds_seq.errors import UserError
from ds_seq.files import fingerprint
from ds_seq.models import attach_adapters, attach_pieces, build_model, merge_changes
from ds_seq.models.packing import pack_weights
from ds_seq.names import INT8
from ds_seq.runs.card import LoadedRun, ModelCard, StoredRun
from ds_seq.runs.fewer_layers import KeptLayers, keep_layers
from ds_seq.runs.foreign import refuse_huggingface
from ds_seq.runs.formats import FORMATS
from ds_seq.runs.formats.ds_seq import CONFIG_FILE
from ds_seq.runs.parts import add_part
from ds_seq.weights.fill import fill, model_tensors
from ds_seq.weights.joined import JoinedSource
from ds_seq.weights.packed import PackedFile, restore_scales

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""In addition to `DTYPES`, a number format for inference: 8-bit weights; see `pack_weights`."""


def open_run(run: str | Path, checkpoint: str) -> StoredRun:
    """Open a trained model without reading its tensors.

    Args:
        run: a run folder, an exported folder or an exported file.
        checkpoint: `best`, `last`, the name of a checkpoint or a path. For an export, which holds
            a single state, only `best` and `last` are valid. If the training averages the weights
            (`train.ema`), these are the average; with `:raw` at the end, as in `best:raw`, they are
            the weights themselves. `:ema` requires the average.

    Raises:
        UserError: a file is missing or damaged, or an export does not have the checkpoint.
    """
    path = Path(run)
    for form in FORMATS:
        if form.detects(path):
            return form.open(path, checkpoint)
    if path.is_file():
        raise UserError(f"{path}: neither a run folder nor a file that `ds-seq export` made")
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder or exported file")
    refuse_huggingface(path)
    raise UserError(f"{path}: not a run folder ({CONFIG_FILE} is missing)")


class ModelParts(NamedTuple):
    """The parts of a model to load, where it is not all of it, or more."""

    adapter: str | None = None
    """Adapter of all sentences; None: as the config says, see `attach_adapters`."""
    file: str | Path | None = None
    """File with a part of the model that the run does not have, see `ds_seq.runs.parts`."""
    layers: KeptLayers | None = None
    """Layers to load; None: all."""


WHOLE = ModelParts()


def load_run(
    run: str | Path,
    checkpoint: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    expert_parallel: int | None = None,
    merged: bool = False,
    parts: ModelParts = WHOLE,
) -> LoadedRun:
    """Build the model of `run` and load its weights.

    Args:
        run: see `open_run`.
        checkpoint: see `open_run`.
        device: device of the model.
        dtype: precision of the model; None for the precision of the training on a GPU and float32
            on a CPU. Integer buffers keep their type.
        expert_parallel: number of ranks over which the experts are distributed; a collective if
            more than 1. None keeps all experts of a layer on one rank.
        merged: whether to merge low-rank changes into the weights, which costs nothing but that the
            model is no longer the one of the config.
        parts: what to load of the model.

    Returns:
        The model in evaluation mode, with its card.

    Raises:
        UserError: a file is missing or damaged, or the files do not match each other.
    """
    expert_parallel = expert_parallel or 1
    stored = _with_parts(open_run(run, checkpoint), parts)
    _check_spread(stored.source, stored.model_config, expert_parallel)
    share = distributed.rank() % expert_parallel
    stored.check_size()
    sizes = stored.tokenizers.sizes
    model = build_model(stored.model_config, sizes, expert_parallel, share, stored.seed)
    fill(model, stored.weights)
    if isinstance(stored.weights, JoinedSource):
        stored.weights.check_base(name for name, _ in model_tensors(model))
    attach_adapters(model, stored.model_config, stored.tokenizers.source, parts.adapter)
    attach_pieces(model, stored.model_config, stored.tokenizers.source)
    if merged:
        merge_changes(model, stored.model_config)
    if expert_parallel > 1:
        from ds_seq.moe.engine import connect_expert_parallel

        connect_expert_parallel(model, expert_parallel)
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        choose_gpu_kernels()
    if dtype is None:
        dtype = DTYPES[default_dtype(stored.card, torch.device(device))]
    model.requires_grad_(False).eval().to(device=device, dtype=dtype)
    if isinstance(stored.weights, PackedFile):
        restore_scales(model, stored.weights)
    described = (stored.card, stored.model_config, model, stored.source, stored.experiment)
    return LoadedRun(*described, stored.files, stored.is_packed)


def load_packed(
    run: str | Path,
    checkpoint: str,
    dtype: str | None,
    device: torch.device,
    expert_parallel: int | None = None,
    parts: ModelParts = WHOLE,
) -> LoadedRun:
    """Load a model for many forward passes, with packed weights.

    Args:
        run: see `load_run`.
        checkpoint: see `load_run`.
        dtype: a name in `DTYPES`, `INT8`, or None for the default of `load_run`.
        device: device of the model.
        expert_parallel: see `load_run`.
        parts: see `load_run`.

    Raises:
        UserError: see `load_run`; or there are no kernels for 8-bit weights.
    """
    precision = None if dtype is None else torch.float32 if dtype == INT8 else DTYPES[dtype]
    places = (device, precision, expert_parallel)
    loaded = load_run(run, checkpoint, *places, merged=True, parts=parts)
    try:
        pack_weights(loaded.model, dtype == INT8)
    except ValueError as error:
        raise UserError(f"--dtype {dtype}: {error}; choose another one") from None
    return loaded


def _with_parts(stored: StoredRun, parts: ModelParts) -> StoredRun:
    """Return a model with a part of another file, or with some of its layers."""
    if parts.file is None:
        return keep_layers(stored, parts.layers) if parts.layers else stored
    if parts.layers:
        raise UserError(f"{parts.file}: belongs to the whole model, not to some of its layers")
    return add_part(stored, Path(parts.file))


def default_dtype(card: ModelCard, device: torch.device) -> str:
    """Return the default dtype of a model: the precision of its training on a GPU, else fp32."""
    return card.precision if device.type == "cuda" else "fp32"


def parse_device(name: str) -> torch.device:
    """Return the device that `--device` names.

    Raises:
        UserError: there is no such kind of device, or no GPU is available.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"--device {name}: no such kind of device; use cpu, cuda or cuda:1"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: PyTorch finds no GPU; use --device cpu")
    return device


def weights_fingerprint(run: StoredRun | LoadedRun) -> str:
    """Return the SHA-256 of the model config and the weights of a model."""
    digest = hashlib.sha256(stable_json(run.model_config))
    for file in run.files or [run.source]:
        digest.update(fingerprint(file).encode())
    return digest.hexdigest()


def _check_spread(path: Path, model: ModelConfig, expert_parallel: int) -> None:
    """Reject a number of ranks over which the experts cannot be distributed evenly."""
    for count in [] if model.moe is None else model.moe.counts:
        if count % expert_parallel:
            raise UserError(
                f"{path}: {count} experts of a layer cannot be spread over {expert_parallel} "
                f"ranks; use a divisor of {count} (--expert-parallel)"
            )
