"""Options shared by the commands that search with a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from ds_seq.config.generation import GenerationConfig
from ds_seq.distributed import World
from ds_seq.errors import UserError
from ds_seq.generation.build import changed_settings
from ds_seq.runs.card import ModelCard
from ds_seq.runs.open import DTYPES, INT8, parse_device


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run and the options of `add_loading_arguments`."""
    parser.add_argument("run", help="run folder, or a file or folder written by `ds-seq export`")
    add_loading_arguments(parser)


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for loading trained models, and the one that a launcher adds."""
    add = parser.add_argument
    add("--checkpoint", default="best", help="best, last or a path (default: %(default)s)")
    add("--device", help="cpu, cuda:1, ... (default: a GPU if there is one)")
    add(
        "--dtype",
        choices=[*DTYPES, INT8],
        help="number format; int8 rounds the weights, on a CPU only (default: as trained on a GPU, "
        "fp32 on a CPU)",
    )
    add("--expert-parallel", type=int, default=1, metavar="N",
        help="spread the experts over N processes (default: all experts on each)")  # fmt: skip
    # The deepspeed launcher adds it before all other arguments; the environment has it, too.
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def add_search_arguments(
    parser: argparse.ArgumentParser, names: Sequence[str] = tuple(GenerationConfig.model_fields)
) -> None:
    """Add one option for each field of `GenerationConfig`, or for some of them."""
    search = parser.add_argument_group("search (default: as in the experiment)")
    for name in names:
        description = GenerationConfig.model_fields[name].description
        search.add_argument(f"--{name.replace('_', '-')}", metavar="X", help=description)


def check_expert_parallel(size: int, world_size: int) -> None:
    """Refuse a number of ranks over which experts cannot be spread."""
    if size < 1 or world_size % size:
        raise UserError(
            f"--expert-parallel {size}: does not divide the {world_size} process(es); start more "
            "processes or lower it"
        )


def chosen_device(args: argparse.Namespace, world: World) -> torch.device:
    """Return the device of `--device`, by default that of this process."""
    return world.device if args.device is None else parse_device(args.device)


def search_settings(
    card: ModelCard, args: argparse.Namespace, more: Mapping[str, Any] = MappingProxyType({})
) -> GenerationConfig:
    """Return the search settings of a model, changed by the command line.

    Args:
        card: card of the model.
        args: parsed arguments with the options of `add_search_arguments`.
        more: search settings from other options, by field.

    Raises:
        UserError: a value is invalid.
    """
    given = {
        name: value
        for name, value in vars(args).items()
        if name in GenerationConfig.model_fields and value is not None
    }
    return changed_settings(card.generation, given | dict(more), _option)


def _option(name: str) -> str:
    return f"--{name}".replace("_", "-")
