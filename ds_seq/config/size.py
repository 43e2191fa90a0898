"""Parameter counts of a model from its config alone, without building it.

Legend: ``D`` d_model, ``F`` ffn_dim, ``V`` vocabulary, ``E`` experts, ``K`` experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_seq.config.model import ModelConfig
from ds_seq.config.moe import MoeConfig, Stack


@dataclass(frozen=True)
class ModelSize:
    """How many parameters a model has.

    Attributes:
        total: all of them.
        active: those that one token meets: K of each layer's E experts count.
        experts: those inside experts; they are what expert parallelism divides over ranks.
    """

    total: int
    active: int
    experts: int


def model_size(model: ModelConfig, vocab_size: int) -> ModelSize:
    """Count the parameters of a built-in model."""
    shared = _embeddings(model, vocab_size)
    experts = active_experts = 0
    stacks: tuple[tuple[Stack, int, int], ...] = (
        ("encoder", model.encoder_layers, 1),
        ("decoder", model.decoder_layers, 2),
    )
    for stack, layers, attentions in stacks:
        for layer in range(layers):
            # one norm before or after each sub-layer
            shared += attentions * (_attention(model.d_model) + _norm(model.d_model))
            shared += _norm(model.d_model)
            num_experts = model.experts_in(stack, layer)
            if model.moe is None or num_experts == 0:
                shared += _feed_forward(model, model.ffn_dim)
                continue
            one = _feed_forward(model, model.moe.ffn_dim or model.ffn_dim)
            shared += _router(model, model.moe, num_experts) + _branch(model, model.moe)
            experts += num_experts * one
            active_experts += model.moe.top_k * one
        if model.norm_position == "pre":
            shared += _norm(model.d_model)
    return ModelSize(shared + experts, shared + active_experts, experts)


def _embeddings(model: ModelConfig, vocab_size: int) -> int:
    tables = {"none": 3, "decoder": 2, "all": 1}[model.share_embeddings]
    positions = 2 * model.max_positions if model.positions == "learned" else 0
    return (tables * vocab_size + positions) * model.d_model


def _attention(d_model: int) -> int:
    return 4 * (d_model * d_model + d_model)


def _norm(d_model: int) -> int:
    return 2 * d_model


def _feed_forward(model: ModelConfig, ffn_dim: int) -> int:
    """One feed-forward or one expert, biases included; swiglu has two maps of D -> F."""
    up = 2 if model.activation == "swiglu" else 1
    return up * (model.d_model + 1) * ffn_dim + (ffn_dim + 1) * model.d_model


def _router(model: ModelConfig, moe: MoeConfig, num_experts: int) -> int:
    if moe.router == "cosine":  # a map to the small space, a row per expert, the temperature
        dim = moe.router_dim or max(num_experts // 2, 16)
        return dim * (model.d_model + num_experts) + 1
    return num_experts * model.d_model


def _branch(model: ModelConfig, moe: MoeConfig) -> int:
    """The dense feed-forward beside the experts, with what mixes the two."""
    width = moe.ffn_dim or model.ffn_dim
    if moe.shared_experts:
        return _feed_forward(model, moe.shared_experts * width)
    if moe.residual:
        return _feed_forward(model, width) + 2 * model.d_model + 2
    if moe.conditional_budget is not None:
        return _feed_forward(model, width) + model.d_model + 1
    return 0
