"""What the commands that search with a trained model have in common on their command lines."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from pydantic import ValidationError

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.generate import GenerationConfig
from ds_seq.config.messages import error_lines
from ds_seq.errors import UserError
from ds_seq.interop.run_folder import DTYPES


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
        choices=DTYPES,
        help="number format (default: as trained on a GPU, fp32 on a CPU)",
    )
    add("--expert-parallel", type=int, default=1, metavar="N",
        help="spread the experts over N processes (default: all experts on each)")  # fmt: skip
    # The deepspeed launcher puts it before all other arguments; the environment says the same.
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """One option for each field of `GenerationConfig`."""
    search = parser.add_argument_group("search (default: what the experiment says)")
    for name, field in GenerationConfig.model_fields.items():
        search.add_argument(f"--{name.replace('_', '-')}", metavar="X", help=field.description)


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
    given = {name: vars(args)[name] for name in GenerationConfig.model_fields}
    data: dict[str, Any] = config.model_dump(mode="json")
    data["generation"] |= {name: value for name, value in given.items() if value is not None}
    try:
        return ExperimentConfig.model_validate(data).generation
    except ValidationError as error:
        messages = error_lines(error, data, lambda path: f"--{path[-1]}".replace("_", "-"))
        raise UserError("\n".join(messages)) from None
