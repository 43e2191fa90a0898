"""Arithmetic of training a model, from its config: floating point operations of matrix products.

Counted as in PaLM (Chowdhery et al. 2022, appendix B): 2 per weight and token forward, twice that
backward, and products of queries, keys and values in full, masked ones included. What is computed a
second time (activation checkpointing) and padding do not count. Of experts, those that a token
chooses count.

Shapes: `S` source tokens and `T` target tokens of a sentence.
"""

from __future__ import annotations

from typing import NamedTuple

from ds_seq.config.model.router import ExternalRouterConfig
from ds_seq.config.model.transformer import TransformerConfig
from ds_seq.names import Stack

_FORWARD_AND_BACKWARD = 3


class TrainingFlops(NamedTuple):
    """Operations of a forward pass, or of forward and backward, by what they grow with."""

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
    """Return the operations of forward and backward of a model; None for one from outside ds_seq.

    Args:
        model: the `model` section.
        vocab_size: size of the vocabulary of the target.
    """
    forward = forward_flops(model, vocab_size)
    if forward is None:
        return None
    return TrainingFlops(*(_FORWARD_AND_BACKWARD * each for each in forward))


def forward_flops(model: object, vocab_size: int) -> TrainingFlops | None:
    """Return the operations of a forward pass; None for a model from outside ds_seq.

    Args:
        model: the `model` section.
        vocab_size: size of the vocabulary of the target.
    """
    if not isinstance(model, TransformerConfig):
        return None
    d = model.d_model
    kv = (model.num_kv_heads or model.num_heads) * (d // model.num_heads)
    calls = {stack: model.calls_of(stack) for stack in model.stacks}
    own = {stack: _per_token(model, stack, kv) for stack in model.stacks}
    factor = 0 if model.embedding_dim is None else model.embedding_dim * d
    output = vocab_size * d
    if factor and model.share_embeddings != "none":
        output = factor + vocab_size * (model.embedding_dim or d)
    pair = 2 * 2 * d  # queries with keys, and attention with values
    return TrainingFlops(
        2 * (own["encoder"] + factor + calls["decoder"] * 2 * d * kv),
        2 * (own["decoder"] + factor + output),
        calls["encoder"] * pair,
        calls["decoder"] * pair,
        calls["decoder"] * pair,
    )


def _per_token(model: TransformerConfig, stack: Stack, kv: int) -> int:
    """Return the weights of all calls of a stack that multiply each of its own tokens.

    Args:
        model: the model.
        stack: the stack.
        kv: width of keys and of values.
    """
    d = model.d_model
    attention = 2 * d * d + 2 * d * kv
    if stack == "decoder":
        attention += 2 * d * d  # queries and outputs of the attention to the source
    count = sum(attention + _feed_forward(model, experts) for experts in model.expert_counts(stack))
    return model.repeats_of(stack) * count


def _feed_forward(model: TransformerConfig, num_experts: int) -> int:
    """Return the weights that multiply a token in a dense feed-forward, or in those it chooses."""
    d, moe = model.d_model, model.moe
    maps = 3 if model.is_gated else 2

    def one(width: int) -> int:
        return maps * d * model.inner_width(width)

    if moe is None or not num_experts:
        return one(model.ffn_dim)
    width = moe.ffn_dim or model.ffn_dim
    dense = moe.dense_width(width)
    count = moe.top_k * one(width) + (one(dense) if dense else 0)
    if moe.router == "cosine":
        dim = moe.router_dim or max(num_experts // 2, 16)
        count += dim * (d + num_experts)
    elif not isinstance(moe.router, ExternalRouterConfig):
        count += num_experts * d
    if moe.residual:
        return count + 2 * d
    return count + (d if moe.conditional_budget is not None else 0)
