"""Embeddings and the projection to the vocabulary, some of which may be shared."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from ds_seq.config.model import TransformerConfig
from ds_seq.modules.embedding import TokenEmbedding
from ds_seq.modules.linear import Linear


class Tables(NamedTuple):
    """The tables of `ds_seq.models.seq2seq.Seq2SeqTransformer`."""

    target: TokenEmbedding
    source: TokenEmbedding | None
    """None to share `target`."""
    output: nn.Linear | None
    """None to share `target`."""


def make_tables(
    cfg: TransformerConfig, vocab_size: int, source_vocab_size: int, pad_id: int
) -> Tables:
    """Make the tables of an encoder-decoder.

    Args:
        cfg: config of the model.
        vocab_size: size of the vocabulary of the target.
        source_vocab_size: size of the vocabulary of the source.
        pad_id: id of the padding token.
    """
    width = cfg.d_model
    options = (pad_id, cfg.embedding_dim, cfg.embedding_scale)
    target = TokenEmbedding(vocab_size, width, *options, cfg.output_bias and cfg.shares_output)
    is_shared = cfg.shares_inputs and cfg.language_model is None
    assert not is_shared or source_vocab_size == vocab_size, "one table has one size"
    source = None if cfg.shares_inputs else TokenEmbedding(source_vocab_size, width, *options)
    output = None
    if not cfg.shares_output:  # initialized like the embedding it replaces
        output = Linear(width, vocab_size, bias=cfg.output_bias, deviation=width**-0.5)
    return Tables(target, source, output)
