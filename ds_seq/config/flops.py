"""Arithmetic of training a model, from its config: floating point operations of matrix products.

Counted as in PaLM (Chowdhery et al. 2022, appendix B): 2 per weight and token forward, twice that
backward, and products of queries, keys and values in full, masked ones included. What is computed a
second time (activation checkpointing) and padding do not count. Of experts, those that a token
chooses count.

Shapes: `S` source tokens and `T` target tokens of a sentence.
"""

from __future__ import annotations

from typing import NamedTuple

from ds_seq.config.model.transformer import TransformerConfig

_FORWARD_AND_BACKWARD = 3


class TrainingFlops(NamedTuple):
    """Operations of forward and backward, by what they grow with."""

    per_source: float
    """Per source token: encoder, and keys and values of the decoder's attention to it."""
    per_target: float
    """Per target token: decoder and output projection."""
    per_source_pair: float
    """Per pair of source tokens of a sentence, `S * S`."""
    per_target_pair: float
    """Per pair of target tokens of a sentence, `T * T`."""
    per_cross_pair: float
    """Per source and target token of a sentence, `S * T`."""

    def of(self, sums: LengthSums) -> float:
        """Return the operations for sentences with these sums of lengths."""
        return sum(each * count for each, count in zip(self, sums, strict=True))


class LengthSums(NamedTuple):
    """Sums over sentences, in the order of `TrainingFlops`."""

    source: float
    target: float
    source_squared: float
    target_squared: float
    product: float


def training_flops(model: object, vocab_size: int) -> TrainingFlops | None:
    """Return the operations of a model; None for one from outside ds_seq.

    Args:
        model: the `model` section.
        vocab_size: size of the vocabulary of the target.
    """
    if not isinstance(model, TransformerConfig):
        return None
    width, layers = model.d_model, {stack: model.calls_of(stack) for stack in model.stacks}
    weights = {stack: model.active_weights(stack) for stack in model.stacks}
    encoder, decoder = weights.get("encoder", 0), weights.get("decoder", 0)
    head = model.head_width(width)
    # keys and values of the source
    moved = layers.get("decoder", 0) * 2 * width * (model.num_kv_heads or model.num_heads) * head
    pair = 2 * 2 * model.num_heads * head  # queries with keys, and attention with values
    forward = (
        2 * (encoder + moved),
        2 * (decoder - moved + width * vocab_size),
        layers.get("encoder", 0) * pair,
        layers.get("decoder", 0) * pair,
        layers.get("decoder", 0) * pair,
    )
    return TrainingFlops(*(_FORWARD_AND_BACKWARD * each for each in forward))
