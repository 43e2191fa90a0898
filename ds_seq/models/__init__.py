"""Models by the `name` in their config."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import nn

from ds_seq.config.model import ModelConfig
from ds_seq.errors import UserError
from ds_seq.models.build import build_seq2seq
from ds_seq.plugins import find_plugin
from ds_seq.text.tokenizer import VocabSizes

__all__ = ["MODELS", "build_model"]

MODELS: dict[str, Callable[..., nn.Module]] = {"transformer": build_seq2seq}


def build_model(
    config: ModelConfig,
    vocab: VocabSizes | int,
    expert_parallel: int,
    expert_parallel_rank: int,
    seed: int,
) -> nn.Module:
    """Build the model that `config.name` names, ours or an external `package.module:Name`.

    An external builder is called like ours, with the whole config section; its options are in
    `config.options`. It receives `source_vocab_size` only if that is not the size of the target.

    Args:
        config: section of the model.
        vocab: number of ids of source and target, or of both.
        expert_parallel: see `build_seq2seq`.
        expert_parallel_rank: see `build_seq2seq`.
        seed: see `build_seq2seq`.

    Raises:
        UserError: the sides have vocabularies of different sizes, which an external builder does
            not support.
    """
    make = find_plugin("model", config.name, MODELS)
    source, target = (vocab, vocab) if isinstance(vocab, int) else vocab
    if source == target:
        return make(config, target, expert_parallel, expert_parallel_rank, seed)
    if "source_vocab_size" not in inspect.signature(make).parameters:
        raise UserError(
            f"model.name: {config.name} takes no source_vocab_size, but the vocabulary of the "
            f"source has {source:,} ids and that of the target {target:,}; give both one size, or "
            "use data.vocab.joint=true"
        )
    return make(
        config,
        target,
        expert_parallel,
        expert_parallel_rank,
        seed,
        source_vocab_size=source,
    )
