"""Options shared by the commands that search with a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import yaml

from ds_seq.commands.arguments.shared import chosen_layers
from ds_seq.config.generation import GenerationConfig
from ds_seq.config.yaml_file import parse_value
from ds_seq.distributed import World
from ds_seq.errors import UserError
from ds_seq.generation.build import changed_settings
from ds_seq.runs.card import LoadedRun, ModelCard
from ds_seq.runs.open import ModelParts, load_packed, parse_device


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


def load_chosen(
    name: str, args: argparse.Namespace, device: torch.device, expert_parallel: int | None = None
) -> LoadedRun:
    """Load a model as the options of `add_loading_arguments` and `add_parts` say.

    Args:
        name: run folder or export.
        args: parsed arguments.
        device: device of the model.
        expert_parallel: see `load_packed`.

    Raises:
        UserError: see `load_packed`.
    """
    parts = ModelParts(args.adapter, args.part, chosen_layers(args))
    return load_packed(name, args.checkpoint, args.dtype, device, expert_parallel, parts)


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
        name: _value(text)
        for name, text in vars(args).items()
        if name in GenerationConfig.model_fields and text is not None
    }
    return changed_settings(card.generation, given | dict(more), _option)


def _value(text: str) -> Any:
    """Return a value as an experiment file would have it."""
    try:
        return parse_value(text)
    except yaml.YAMLError:
        return text


def _option(name: str) -> str:
    return f"--{name}".replace("_", "-")
