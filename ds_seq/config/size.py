"""Parameter counts of a model from its config alone, without building it.

Legend: ``D`` d_model, ``F`` ffn_dim, ``V`` vocabulary, ``E`` experts, ``K`` experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_seq.config.model import ModelConfig, MoeConfig, Stack


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
            one = _feed_forward(model)
            moe = _moe_of(model, stack, layer)
            if moe is None:
                shared += one
                continue
            shared += _router(model, moe, one)
            experts += moe.num_experts * one
            active_experts += moe.top_k * one
        if model.norm_position == "pre":
            shared += _norm(model.d_model)
    return ModelSize(shared + experts, shared + active_experts, experts)


def _moe_of(model: ModelConfig, stack: Stack, layer: int) -> MoeConfig | None:
    return model.moe if model.moe is not None and model.moe.has_experts(stack, layer) else None


def _embeddings(model: ModelConfig, vocab_size: int) -> int:
    tables = {"none": 3, "decoder": 2, "all": 1}[model.share_embeddings]
    positions = 2 * model.max_positions if model.positions == "learned" else 0
    return (tables * vocab_size + positions) * model.d_model


def _attention(d_model: int) -> int:
    return 4 * (d_model * d_model + d_model)


def _norm(d_model: int) -> int:
    return 2 * d_model


def _feed_forward(model: ModelConfig) -> int:
    """One feed-forward or one expert, biases included; swiglu has two maps of D -> F."""
    up = 2 if model.activation == "swiglu" else 1
    return up * (model.d_model + 1) * model.ffn_dim + (model.ffn_dim + 1) * model.d_model


def _router(model: ModelConfig, moe: MoeConfig, feed_forward: int) -> int:
    gate = moe.num_experts * model.d_model
    # residual MoE: a dense feed-forward and the map that mixes the two
    return gate + (feed_forward + 2 * model.d_model + 2 if moe.residual else 0)
