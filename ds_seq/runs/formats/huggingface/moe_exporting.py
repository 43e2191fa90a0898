"""Settings of models with experts, written for transformers, and what those must have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ds_seq.config.criterion import ModelAndBaseConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.huggingface.experts import (
    NLLB_MOE,
    SECOND_EXPERTS,
    SWITCH,
    every_nth,
    sparse_layers,
)
from ds_seq.config.model import MoeConfig, TransformerConfig
from ds_seq.errors import UserError
from ds_seq.names import LOAD_BALANCE, ROUTER_Z, STACKS, Stack


def moe_settings(kind: str, config: ExperimentConfig, model: TransformerConfig) -> dict[str, Any]:
    """Return the fields of `config.json` about experts.

    Args:
        kind: `model_type`.
        config: the experiment.
        model: its model, which has experts.

    Raises:
        UserError: the layers that have experts do not follow the rule of the family.
    """
    assert model.moe is not None, "checked by the caller"
    return {
        "num_experts": max(model.experts_per_layer),
        "router_bias": False,
        "router_dtype": "float32",
        "router_aux_loss_coef": _loss_weight(config, LOAD_BALANCE),
        "router_z_loss_coef": _loss_weight(config, ROUTER_Z),
        **(_nllb(model, model.moe) if kind == NLLB_MOE else _switch(model, model.moe)),
    }


def check_experts(kind: str, own: TransformerConfig, found: TransformerConfig) -> None:
    """Refuse experts that compute something else in evaluation than those that are written.

    Args:
        kind: `model_type`.
        own: the model of the run.
        found: what `config.json` says.

    Raises:
        UserError: they differ; names the first option that does.
    """
    theirs = _in_evaluation(found)
    for name, value in _in_evaluation(own).items():
        if value != theirs.get(name):
            raise UserError(
                f"model.moe.{name}: transformers has no experts with {value} ({kind} has "
                f"{theirs.get(name)}); add "
                "--merge-experts, or use another --format"
            )


def _in_evaluation(model: TransformerConfig) -> dict[str, Any]:
    """Return what experts compute in evaluation; how they are trained does not matter."""
    moe = model.moe
    if moe is None:
        return {}
    has_limit = moe.eval_capacity_factor is not None
    return {
        "router": moe.router,
        "top_k": moe.top_k,
        "num_experts": model.experts_per_layer,
        "ffn_dim": moe.ffn_dim or model.ffn_dim,
        "normalize_weights": moe.normalization,
        "eval_capacity_factor": moe.eval_capacity_factor,
        "min_capacity": moe.min_capacity if has_limit else None,
        "drop": moe.drop if has_limit and moe.drop != "random" else "position",
        "residual": moe.residual,
        "shared_experts": moe.shared_experts,
        "conditional_budget": moe.conditional_budget,
    }


def _nllb(model: TransformerConfig, moe: MoeConfig) -> dict[str, Any]:
    positions = vars(model.positions)
    if (positions.get("offset"), positions.get("wavelengths")) != (2, "inclusive"):
        raise UserError(
            f"model.positions: {NLLB_MOE} of transformers has sinusoids with offset 2 and "
            "inclusive wavelengths only; add "
            "--merge-experts, or use another --format"
        )
    rule = "in every n-th layer of a stack"
    steps = {f"{stack}_sparse_step": _found(model, stack, every_nth, rule) for stack in STACKS}
    factor = moe.eval_capacity_factor
    policies = {ours: theirs for theirs, ours in SECOND_EXPERTS.items()}
    return {
        **steps,
        "second_expert_policy": policies[moe.second_expert],
        "normalize_router_prob_before_dropping": moe.normalization == "before_dropping",
        "batch_prioritized_routing": moe.drop == "probability",
        "moe_eval_capacity_token_fraction": 1.0
        if factor is None
        else 2 * factor / max(model.experts_per_layer),
        "moe_token_dropout": 0.0,  # scales outputs in evaluation, which ours does not
    }


def _switch(model: TransformerConfig, moe: MoeConfig) -> dict[str, Any]:
    rule = "in every n-th layer of a stack, from the second on"
    counts = {
        f"num_sparse_{stack}_layers": _found(model, stack, sparse_layers, rule) for stack in STACKS
    }
    return {
        **counts,
        "router_jitter_noise": 0.01 if moe.noise == "jitter" else 0.0,
        "expert_capacity": model.max_positions,  # of a sentence, so that nothing is dropped
    }


def _found(
    model: TransformerConfig, stack: Stack, layers: Callable[[int, int], list[int]], rule: str
) -> int:
    """Return the value of an option that gives the layers with experts of a stack.

    Args:
        model: the model.
        stack: the stack.
        layers: depth and value -> layers with experts.
        rule: where they can be, for messages.
    """
    own, depth = model.moe_layers(stack), model.layers_of(stack)
    for value in range(depth + 2):  # more than the depth: none
        if layers(depth, value) == own:
            return value
    raise UserError(
        f"model.moe: the {stack} has experts in the layers {own or 'none'}, counted from 0; "
        f"transformers has them {rule}; add "
        "--merge-experts, or use another --format"
    )


def _loss_weight(config: ExperimentConfig, name: str) -> float:
    if not isinstance(config.criterion, ModelAndBaseConfig):
        return 0.0
    return config.criterion.loss_weights.get(name, 1.0) or 0.0


ARCHITECTURES = {
    NLLB_MOE: "NllbMoeForConditionalGeneration",
    SWITCH: "SwitchTransformersForConditionalGeneration",
}
