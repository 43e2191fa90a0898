"""The sections of NLLB-MoE and Switch Transformers: M2M100 and T5 with experts in some layers.

Both route in float32, and so do we. What they do differently in training only is not refused: see
docs/HUGGING_FACE.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ds_seq.config.huggingface.dense import (
    DENSE,
    Refused,
    Section,
    Settings,
    bart_like,
    check_numbers,
    t5,
)
from ds_seq.config.huggingface.facts import Facts
from ds_seq.errors import UserError
from ds_seq.names import BASE, LOAD_BALANCE, ROUTER_Z, STACKS

NLLB_MOE, SWITCH = "nllb-moe", "switch_transformers"
SECOND_EXPERTS = {"all": "always", "sampling": "sampled", "random": "random"}
"""Choices of the second expert: theirs -> ours."""
_JITTER = {0: "none", 0.01: "jitter"}


class WithExperts(NamedTuple):
    """Sections of a model with experts.

    Attributes:
        model: fields of `model`.
        criterion: fields of `criterion`; empty if no layer has experts.
    """

    model: Section
    criterion: Section


def _nllb_moe(config: Settings, facts: Facts, path: str) -> WithExperts:
    base = bart_like({**config, "model_type": "m2m_100"}, facts, path)
    _check_router(config, path)
    check_numbers(config, ("num_experts",), path)
    share, count = config.get("moe_eval_capacity_token_fraction", 1.0), config["num_experts"]
    if share <= 0:
        raise Refused(
            path,
            f"moe_eval_capacity_token_fraction {share}, a number of tokens that does not depend on "
            "the text,",
            "shares above 0",
        )
    before = config.get("normalize_router_prob_before_dropping", False)
    moe = {
        "num_experts": count,
        "top_k": 2,
        "layers": nllb_layers(config),
        "second_expert": _one_of(config, "second_expert_policy", "all", SECOND_EXPERTS, path),
        "normalize_weights": "before_dropping" if before else "after_dropping",
        "drop": "probability" if config.get("batch_prioritized_routing") else "position",
        "capacity_factor": 1.0,  # of GShard: twice the even share
        # a share of all tokens there, a multiple of the even share of two choices here
        "eval_capacity_factor": None if share >= 1 else share * count / 2,
        "min_capacity": 0,
    }
    # the z-loss of its config is not computed
    weights = {BASE: 1.0, LOAD_BALANCE: config.get("router_aux_loss_coef", 0.001), ROUTER_Z: None}
    return _with_experts(base, moe, weights)


def _switch(config: Settings, facts: Facts, path: str) -> WithExperts:
    function = str(config.get("dense_act_fn", "relu"))
    if function.startswith("gated-"):
        raise Refused(path, f"dense_act_fn {function}", "relu, gelu or silu there")
    like_t5 = {**config, "model_type": "t5", "feed_forward_proj": function}
    base = t5(like_t5, facts, path)
    _check_router(config, path)
    moe = {
        "num_experts": num_experts(config),
        "top_k": 1,
        "layers": switch_layers(config),
        "noise": _one_of(config, "router_jitter_noise", 0.01, _JITTER, path),
        "normalize_weights": "none",
    }
    weights = {
        BASE: 1.0,
        LOAD_BALANCE: config.get("router_aux_loss_coef", 0.001),
        ROUTER_Z: config.get("router_z_loss_coef", 0.001),
    }
    return _with_experts(base, moe, weights)


def num_experts(config: Settings) -> int:
    """Return the number of experts of a layer; where it is left out, that of Switch."""
    count: int = config.get("num_experts", 8)
    return count


def nllb_layers(config: Settings) -> dict[str, list[int]]:
    """Return the layers with experts of each stack, by the rule of NLLB-MoE."""
    return {
        stack: every_nth(config[f"{stack}_layers"], config.get(f"{stack}_sparse_step", 4))
        for stack in STACKS
    }


def every_nth(depth: int, step: int) -> list[int]:
    """Return every `step`-th of `depth` layers, counted from 0; none if `step` is 0."""
    return [i for i in range(depth) if step > 0 and (i + 1) % step == 0]


def switch_layers(config: Settings) -> dict[str, list[int]]:
    """Return the layers with experts of each stack, by the rule of Switch Transformers."""
    depth = config["num_layers"]
    depths = {"encoder": depth, "decoder": config.get("num_decoder_layers") or depth}
    return {
        stack: sparse_layers(depths[stack], config.get(f"num_sparse_{stack}_layers", 3))
        for stack in STACKS
    }


def sparse_layers(depth: int, count: int) -> list[int]:
    """Return the layers that have experts if `count` of `depth` layers are asked for.

    Where none is asked for, the second layer has experts all the same: so transformers does it.
    """
    step = depth // count if count > 0 else depth
    return [i for i in range(depth) if step == 1 or (step > 1 and i % step == 1)]


def _check_router(config: Settings, path: str) -> None:
    if config.get("router_bias"):
        raise Refused(path, "router_bias true", "routers without a bias")
    dtype = config.get("router_dtype", "float32")
    if dtype != "float32":
        raise Refused(path, f"router_dtype {dtype}", "routers in float32")


def _one_of(config: Settings, key: str, default: Any, known: Mapping[Any, str], path: str) -> str:
    given = config.get(key, default)
    if given not in known:
        raise Refused(path, f"{key} {given}", " or ".join(map(str, known)))
    return known[given]


def _with_experts(base: Section, moe: Section, weights: Section) -> WithExperts:
    """Return a model with experts, or the dense one if no layer has any."""
    if not any(moe["layers"].values()):
        return WithExperts(base, {})
    criterion = {"name": "model_and_base", "loss_weights": weights}
    return WithExperts({**base, "moe": {**moe, "placement": "both"}}, criterion)


EXPERTS: dict[str, Callable[[Settings, Facts, str], WithExperts]] = {
    NLLB_MOE: _nllb_moe,
    SWITCH: _switch,
}
"""How to read the config of a model with experts, by its `model_type`."""


def sections(config: Settings, facts: Facts, path: str) -> WithExperts:
    """Return the sections of the model that a `config.json` describes.

    Args:
        config: its content.
        facts: what the tensors say beyond it.
        path: the folder, for messages.

    Raises:
        UserError: no model of ds_seq is like it; the message names what differs.
    """
    name = str(config.get("model_type"))
    if config.get("auto_map"):
        raise UserError(f"{path}: its model is code of its own (auto_map), which is never run here")
    if name in EXPERTS:
        return EXPERTS[name](config, facts, path)
    if name not in DENSE:
        known = ", ".join((*DENSE, *EXPERTS))
        raise UserError(f"{path}: model_type {name!r} cannot be imported; there are {known}")
    return WithExperts(DENSE[name](config, facts, path), {})
