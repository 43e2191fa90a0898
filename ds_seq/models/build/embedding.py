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
    shared, width = cfg.share_embeddings, cfg.d_model
    options = (pad_id, cfg.embedding_dim, cfg.embedding_scale)
    is_tied = shared != "none"
    target = TokenEmbedding(vocab_size, width, *options, cfg.output_bias and is_tied)
    assert shared != "all" or source_vocab_size == vocab_size, "one table has one size"
    source = None if shared == "all" else TokenEmbedding(source_vocab_size, width, *options)
    output = None
    if not is_tied:  # initialized like the embedding it replaces
        output = Linear(width, vocab_size, bias=cfg.output_bias, deviation=width**-0.5)
    return Tables(target, source, output)
