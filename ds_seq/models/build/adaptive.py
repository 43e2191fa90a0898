"""Build adaptive input and adaptive softmax."""

from __future__ import annotations

from ds_seq.config.model.adaptive import AdaptiveConfig
from ds_seq.config.model.transformer import TransformerConfig
from ds_seq.errors import UserError
from ds_seq.modules.adaptive import AdaptiveEmbedding, AdaptiveSoftmax
from ds_seq.modules.embedding import TokenEmbedding


def make_adaptive(
    cfg: TransformerConfig, adaptive: AdaptiveConfig, vocab_size: int, pad_id: int
) -> tuple[AdaptiveEmbedding | TokenEmbedding, AdaptiveSoftmax]:
    """Make embedding and output of a model.

    Args:
        cfg: config of the model.
        adaptive: its bands.
        vocab_size: size of the vocabulary.
        pad_id: id of the padding token.

    Raises:
        UserError: the vocabulary ends before the last band begins.
    """
    check_bands(adaptive, vocab_size)
    width = cfg.d_model
    shapes = adaptive.bands(width, vocab_size)
    embedding: AdaptiveEmbedding | TokenEmbedding
    if adaptive.input:
        embedding = AdaptiveEmbedding(shapes, width, pad_id, cfg.embedding_scale)
    else:
        embedding = TokenEmbedding(vocab_size, width, pad_id, scaled=cfg.embedding_scale)
    return embedding, AdaptiveSoftmax(
        shapes, width, cfg.shares_output, adaptive.tie_projections, adaptive.softmax_dropout
    )


def make_adaptive_softmax(adaptive: AdaptiveConfig, width: int, vocab_size: int) -> AdaptiveSoftmax:
    """Make an adaptive softmax with tables of its own, after states of a width.

    Raises:
        UserError: the vocabulary ends before the last band begins.
    """
    check_bands(adaptive, vocab_size)
    shapes = adaptive.bands(width, vocab_size)
    return AdaptiveSoftmax(shapes, width, False, False, adaptive.softmax_dropout)


def check_bands(adaptive: AdaptiveConfig, vocab_size: int) -> None:
    """Refuse bands that a vocabulary does not reach.

    Raises:
        UserError: the vocabulary ends before the last band begins.
    """
    if vocab_size <= adaptive.cutoffs[-1]:
        raise UserError(
            f"model.adaptive.cutoffs: {adaptive.cutoffs[-1]} is not below the size of the "
            f"vocabulary, {vocab_size}; use smaller cutoffs"
        )
