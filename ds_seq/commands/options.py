"""What the commands that search with a trained model have in common on their command lines."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import ValidationError

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.generation import GenerationConfig
from ds_seq.config.messages import findings
from ds_seq.errors import UserError
from ds_seq.models.packing import pack_weights
from ds_seq.runs.open import DTYPES, LoadedRun, load_run

INT8 = "int8"
"""Among the number formats of `add_loading_arguments`: weights of 8 bits, see `pack_weights`."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, where and how precise: the run itself and `add_loading_arguments`."""
    parser.add_argument("run", help="run folder, or a file or folder that `ds-seq export` made")
    add_loading_arguments(parser)


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """How trained models are loaded: four options, and what a launcher adds."""
    add = parser.add_argument
    add("--checkpoint", default="best", help="best, last or a path (default: %(default)s)")
    add("--device", help="such as cpu or cuda:1 (default: a GPU where there is one)")
    add(
        "--dtype",
        choices=[*DTYPES, INT8],
        help="number format; int8 rounds the weights, on a CPU only (default: as trained on a GPU, "
        "fp32 on a CPU)",
    )
    add("--expert-parallel", type=int, default=1, metavar="N",
        help="spread the experts over N processes (default: all experts on each)")  # fmt: skip
    # The deepspeed launcher puts it before all other arguments; the environment says the same.
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def load_model(
    run: str, checkpoint: str, dtype: str | None, device: torch.device, expert_parallel: int = 1
) -> LoadedRun:
    """Load a model that is to be called very often; its weights are packed.

    Args:
        run: see `load_run`.
        checkpoint: likewise.
        dtype: what ``--dtype`` of `add_loading_arguments` says.
        device: where the model goes.
        expert_parallel: see `load_run`.

    Raises:
        UserError: see `load_run`; or ``--dtype int8`` where there are no kernels for it.
    """
    precision = None if dtype is None else torch.float32 if dtype == INT8 else DTYPES[dtype]
    loaded = load_run(run, checkpoint, device, precision, expert_parallel)
    try:
        pack_weights(loaded.model, dtype == INT8)
    except ValueError as error:
        raise UserError(f"--dtype {dtype}: {error}; choose another one") from None
    return loaded


def add_search_arguments(
    parser: argparse.ArgumentParser, names: Sequence[str] = tuple(GenerationConfig.model_fields)
) -> None:
    """One option for each field of `GenerationConfig`, or for some of them."""
    search = parser.add_argument_group("search (default: what the experiment says)")
    for name in names:
        description = GenerationConfig.model_fields[name].description
        search.add_argument(f"--{name.replace('_', '-')}", metavar="X", help=description)


def check_n_best(n_best: int, settings: GenerationConfig) -> None:
    """Refuse to ask a search for more hypotheses than it has; draws may be any number."""
    if n_best < 1:
        raise UserError(f"--n-best {n_best}: at least 1 hypothesis is needed")
    if n_best > settings.beam and not settings.sampling:
        raise UserError(
            f"--n-best {n_best}: the search keeps {settings.beam} hypotheses; raise --beam"
        )


def check_expert_parallel(size: int, world_size: int) -> None:
    """Refuse a number of ranks that experts cannot be spread over."""
    if size < 1 or world_size % size:
        raise UserError(
            f"--expert-parallel {size}: does not divide the {world_size} process(es); start more "
            "or ask for less"
        )


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


def search_settings(config: ExperimentConfig, args: argparse.Namespace) -> GenerationConfig:
    """The search of an experiment, changed as the command line says."""
    given = {
        name: value
        for name, value in vars(args).items()
        if name in GenerationConfig.model_fields and value is not None
    }
    data: dict[str, Any] = config.model_dump(mode="json")
    data["generation"] |= given
    try:
        return ExperimentConfig.model_validate(data).generation
    except ValidationError as error:
        # the option names the key, so that the key itself would say it twice
        messages = [
            f"--{path[-1]}: ".replace("_", "-") + message for path, message in findings(error, data)
        ]
        raise UserError("\n".join(messages)) from None
