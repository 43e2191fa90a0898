"""Models by the `name` in their config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ds_seq.config.model import ModelConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.plugins import find_plugin

__all__ = ["MODELS", "build_model"]

MODELS: dict[str, Callable[[Any, int, int, int, int], nn.Module]] = {"transformer": build_seq2seq}


def build_model(
    config: ModelConfig,
    vocab_size: int,
    expert_parallel: int,
    expert_parallel_rank: int,
    seed: int,
) -> nn.Module:
    """Build the model that `config.name` names, ours or an external `package.module:Name`.

    An external builder is called like ours, with the whole config section; its options are in
    `config.options`.
    """
    make = find_plugin("model", config.name, MODELS)
    return make(config, vocab_size, expert_parallel, expert_parallel_rank, seed)
