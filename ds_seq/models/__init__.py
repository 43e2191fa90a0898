"""Models by the `name` in their config."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from ds_seq.config.model import ModelConfig
from ds_seq.errors import UserError
from ds_seq.models.build import build_seq2seq
from ds_seq.models.protocol import OffersAdapters
from ds_seq.plugins import find_plugin
from ds_seq.text.tokenizer import Tokenizer, VocabSizes

__all__ = ["MODELS", "attach_adapters", "attach_pieces", "build_model", "merge_changes"]


def _recurrent(*args: Any, **kwargs: Any) -> nn.Module:
    """Build a recurrent model; its parts are imported only if there is one."""
    from ds_seq.models.build.recurrent import build_recurrent

    return build_recurrent(*args, **kwargs)


def _recurrent_lm(*args: Any, **kwargs: Any) -> nn.Module:
    from ds_seq.models.build.recurrent import build_recurrent_lm  # only where it is used

    return build_recurrent_lm(*args, **kwargs)


def _convolutional(*args: Any, **kwargs: Any) -> nn.Module:
    """Build a convolutional model; its parts are imported only if there is one."""
    from ds_seq.models.build.convolutional import build_convolutional

    return build_convolutional(*args, **kwargs)


def _convolutional_lm(*args: Any, **kwargs: Any) -> nn.Module:
    from ds_seq.models.build.convolutional import build_convolutional_lm  # only where it is used

    return build_convolutional_lm(*args, **kwargs)


def _decoder_only(*args: Any, **options: Any) -> nn.Module:
    from ds_seq.models.build.one_stack import build_decoder_only  # only where it is used

    return build_decoder_only(*args, **options)


def _encoder_only(*args: Any, **options: Any) -> nn.Module:
    from ds_seq.models.build.one_stack import build_encoder_only  # only where it is used

    return build_encoder_only(*args, **options)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "transformer": build_seq2seq,
    "recurrent": _recurrent,
    "recurrent_lm": _recurrent_lm,
    "convolutional": _convolutional,
    "convolutional_lm": _convolutional_lm,
    "decoder_only": _decoder_only,
    "encoder_only": _encoder_only,
}


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
    known = config.name in MODELS  # all of ours take two sizes
    if not known and "source_vocab_size" not in inspect.signature(make).parameters:
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


def attach_adapters(
    model: nn.Module, config: ModelConfig, tokenizer: Tokenizer, adapter: str | None = None
) -> None:
    """Let a model choose the adapter of each sentence; does nothing without adapters.

    Args:
        model: the model.
        config: section of the model.
        tokenizer: tokenizer of the source, which has the tags that choose.
        adapter: id of the adapter of all sentences, or `ds_seq.names.NO_ADAPTER`; None: as the
            config says.

    Raises:
        UserError: there is no such adapter, or the vocabulary does not have a tag.
    """
    if adapter is None and config.adapters is None:
        return
    from ds_seq.models.build.adapters import choose_adapters, choose_one_adapter

    if adapter is not None:
        choose_one_adapter(model, [] if config.adapters is None else config.adapters.ids, adapter)
    elif config.adapters is not None and isinstance(model, OffersAdapters):
        choose_adapters(model, config.adapters, tokenizer)


def attach_pieces(model: nn.Module, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Let a model read the bytes of its tokens; does nothing if tokens are embedded by a table.

    Args:
        model: the model.
        config: section of the model.
        tokenizer: vocabulary of a language model, or of the source, which a language model in front
            of the encoder reads.
    """
    read = config.language_model
    if config.characters is None and (read is None or read.section.characters is None):
        return
    from ds_seq.modules.characters import CharacterEmbedding

    symbols = tokenizer.symbols
    pieces = tokenizer.pieces(range(len(tokenizer)))
    for module in model.modules():
        if isinstance(module, CharacterEmbedding):
            module.read_pieces(pieces, symbols.pad, symbols.eos, symbols.unk, symbols.bos)


def merge_changes(model: nn.Module, config: ModelConfig) -> None:
    """Merge low-rank changes into the weights of a model; does nothing without changes.

    Args:
        model: the model, in the precision in which the sums are to be rounded.
        config: section of the model.
    """
    if config.lora is None:
        return
    from ds_seq.models.build.lora import merge_lora

    merge_lora(model)
