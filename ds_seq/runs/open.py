"""Open a trained model, whatever its format; see `ds_seq.runs.formats`.

Nothing here imports DeepSpeed, unless experts are spread over ranks.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from ds_seq import distributed
from ds_seq.config.model import ModelConfig
from ds_seq.config.model.upgrade import stable_json
from ds_seq.distributed.device import avoid_cudnn_attention
from ds_seq.errors import UserError
from ds_seq.files import fingerprint
from ds_seq.models import build_model
from ds_seq.models.packing import pack_weights
from ds_seq.runs.card import LoadedRun, ModelCard, StoredRun
from ds_seq.runs.formats import FORMATS
from ds_seq.runs.formats.ds_seq import CONFIG_FILE
from ds_seq.weights.fill import fill

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INT8 = "int8"
"""Besides `DTYPES`, a number format of models that are only read: weights of 8 bits, see
`pack_weights`."""


def open_run(run: str | Path, checkpoint: str) -> StoredRun:
    """Read all of ``run`` but its tensors.

    Args:
        run: a run folder, an exported folder or an exported file.
        checkpoint: ``best``, ``last``, the name of a checkpoint or a path. Of an export, which
            holds one state, ``best`` and ``last`` are that.

    Raises:
        UserError: something is missing or damaged, or an export is asked for another checkpoint.
    """
    path = Path(run)
    for form in FORMATS:
        if form.detects(path):
            return form.open(path, checkpoint)
    if path.is_file():
        raise UserError(f"{path}: neither a run folder nor a file that `ds-seq export` made")
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder or exported file")
    raise UserError(f"{path}: not a run folder ({CONFIG_FILE} is missing)")


def load_run(
    run: str | Path,
    checkpoint: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    expert_parallel: int | None = None,
) -> LoadedRun:
    """Build the model of ``run`` and load its weights.

    Args:
        run: see `open_run`.
        checkpoint: likewise.
        device: where the model goes.
        dtype: its precision; ``None`` takes that of the training on a GPU, float32 on a CPU.
            Whole numbers among its buffers stay whole numbers.
        expert_parallel: ranks to spread the experts over, a collective when more than 1; None
            keeps all experts of a layer together.

    Returns:
        The model in evaluation mode, with its card.

    Raises:
        UserError: something is missing, damaged or does not fit together.
    """
    expert_parallel = expert_parallel or 1
    stored = open_run(run, checkpoint)
    _check_spread(stored.source, stored.model_config, expert_parallel)
    part = distributed.rank() % expert_parallel
    size = stored.tokenizers.size
    model = build_model(stored.model_config, size, expert_parallel, part, stored.seed)
    fill(model, stored.weights)
    if expert_parallel > 1:
        from ds_seq.moe.engine import connect_expert_parallel

        connect_expert_parallel(model, expert_parallel)
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        avoid_cudnn_attention()
    if dtype is None:
        dtype = DTYPES[default_dtype(stored.card, torch.device(device))]
    model.requires_grad_(False).eval().to(device=device, dtype=dtype)
    return LoadedRun(stored.card, stored.model_config, model, stored.source, stored.experiment)


def load_packed(
    run: str | Path,
    checkpoint: str,
    dtype: str | None,
    device: torch.device,
    expert_parallel: int | None = None,
) -> LoadedRun:
    """Load a model that is to be called very often; its weights are packed.

    Args:
        run: see `load_run`.
        checkpoint: likewise.
        dtype: a name among `DTYPES`, `INT8`, or None for the default of `load_run`.
        device: where the model goes.
        expert_parallel: see `load_run`.

    Raises:
        UserError: see `load_run`; or there are no kernels for weights of 8 bits.
    """
    precision = None if dtype is None else torch.float32 if dtype == INT8 else DTYPES[dtype]
    loaded = load_run(run, checkpoint, device, precision, expert_parallel)
    try:
        pack_weights(loaded.model, dtype == INT8)
    except ValueError as error:
        raise UserError(f"--dtype {dtype}: {error}; choose another one") from None
    return loaded


def default_dtype(card: ModelCard, device: torch.device) -> str:
    """The name of a model's number format unless told otherwise: on a GPU that of the training."""
    return card.precision if device.type == "cuda" else "fp32"


def parse_device(name: str) -> torch.device:
    """The device that ``--device`` names."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"--device {name}: no such kind of device; say cpu, cuda or cuda:1"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: PyTorch sees no GPU here; say --device cpu")
    return device


def weights_fingerprint(run: StoredRun | LoadedRun) -> str:
    """SHA-256 of what a model computes with: its shape and its weights."""
    digest = hashlib.sha256(stable_json(run.model_config))
    path = run.source
    for file in [path] if path.is_file() else sorted(path.glob("weights.*.safetensors")):
        digest.update(fingerprint(file).encode())
    return digest.hexdigest()


def _check_spread(path: Path, model: ModelConfig, expert_parallel: int) -> None:
    """Refuse a number of ranks over which the experts cannot be spread evenly."""
    for count in [] if model.moe is None else model.moe.counts:
        if count % expert_parallel:
            raise UserError(
                f"{path}: {count} experts of a layer cannot be spread over {expert_parallel} "
                f"ranks; ask for a divisor of {count} (--expert-parallel)"
            )
