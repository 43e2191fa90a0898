"""NLLB-MoE and Switch Transformers: M2M100 and T5 in which some layers have experts.

Both route in float32, and so do we. What they do differently in training only is not refused: see
docs/HUGGING_FACE.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ds_seq.names import BASE, LOAD_BALANCE, ROUTER_Z, STACKS
from ds_seq.runs.formats.huggingface.families import (
    Config,
    Described,
    Refused,
    Tensors,
    bart_like,
    t5,
)
from ds_seq.runs.formats.huggingface.mapping import Names, Part, experts

NLLB_MOE, SWITCH = "nllb-moe", "switch_transformers"

# how NLLB-MoE calls the parts of a layer of M2M100
_NLLB_PARTS = {
    ".encoder_attn": ".cross_attention",
    ".final_layer_norm": ".ff_layer_norm",
    ".fc1": ".ffn.fc1",
    ".fc2": ".ffn.fc2",
}
SECOND_EXPERTS = {"all": "always", "sampling": "sampled", "random": "random"}
"""Choices of the second expert: theirs -> ours."""
_JITTER = {0: "none", 0.01: "jitter"}


def _nllb_moe(config: Config, theirs: Tensors, path: str) -> Described:
    base = bart_like({**config, "model_type": "m2m_100"}, theirs, path)
    _check_router(config, path)
    layers = nllb_layers(config)
    names = _with_experts(_renamed(base.names, _NLLB_PARTS), layers, config, True)
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
        "layers": layers,
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
    return _described(base, names, moe, weights)


def _switch(config: Config, theirs: Tensors, path: str) -> Described:
    function = config.get("dense_act_fn", "relu")
    if function.startswith("gated-"):
        raise Refused(path, f"dense_act_fn {function}", "relu, gelu or silu there")
    like_t5 = {**config, "model_type": "t5", "feed_forward_proj": function}
    base = t5(like_t5, theirs, path)
    _check_router(config, path)
    layers = switch_layers(config)
    renamed = _renamed(base.names, {".DenseReluDense": ".mlp"})
    names = _with_experts(renamed, layers, config, False)
    moe = {
        "num_experts": config.get("num_experts", 8),
        "top_k": 1,
        "layers": layers,
        "noise": _one_of(config, "router_jitter_noise", 0.01, _JITTER, path),
        "normalize_weights": "none",
    }
    weights = {
        BASE: 1.0,
        LOAD_BALANCE: config.get("router_aux_loss_coef", 0.001),
        ROUTER_Z: config.get("router_z_loss_coef", 0.001),
    }
    return _described(base, names, moe, weights)


def nllb_layers(config: Config) -> dict[str, list[int]]:
    """Return the layers with experts of each stack, by the rule of NLLB-MoE."""
    return {
        stack: every_nth(config[f"{stack}_layers"], config.get(f"{stack}_sparse_step", 4))
        for stack in STACKS
    }


def every_nth(depth: int, step: int) -> list[int]:
    """Return every `step`-th of `depth` layers, counted from 0; none if `step` is 0."""
    return [i for i in range(depth) if step > 0 and (i + 1) % step == 0]


def switch_layers(config: Config) -> dict[str, list[int]]:
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


def _check_router(config: Config, path: str) -> None:
    if config.get("router_bias"):
        raise Refused(path, "router_bias true", "routers without a bias")
    dtype = config.get("router_dtype", "float32")
    if dtype != "float32":
        raise Refused(path, f"router_dtype {dtype}", "routers in float32")


def _one_of(config: Config, key: str, default: Any, known: Mapping[Any, str], path: str) -> str:
    given = config.get(key, default)
    if given not in known:
        raise Refused(path, f"{key} {given}", " or ".join(map(str, known)))
    return known[given]


def _renamed(names: Names, table: Mapping[str, str]) -> Names:
    """Return `names` with other names of the parts of their layers."""
    found = {}
    for ours, parts in names.items():
        for old, new in table.items() if ".layers." in ours else ():
            parts = [part._replace(name=part.name.replace(old, new)) for part in parts]
        found[ours] = parts
    return found


def _with_experts(
    names: Names, layers: Mapping[str, Sequence[int]], config: Config, is_nllb: bool
) -> Names:
    """Return `names` with experts and a router in place of the feed-forwards of some layers."""
    count = config.get("num_experts", 8)
    # its experts' outputs are scaled in evaluation by the share that is not masked in training
    times = 1.0 - config.get("moe_token_dropout", 0.2) if is_nllb else 1.0
    maps = ("fc1", "fc2") if is_nllb else ("wi", "wo")
    for stack, chosen in layers.items():
        for layer in chosen:
            place = f"{stack}.layers.{layer}.feed_forward"
            (up,) = names[f"{place}.up.weight"]
            theirs = up.name.removesuffix(f".{maps[0]}.weight")
            for kind in ("weight", "bias"):
                for each in ("up", "down"):
                    names.pop(f"{place}.{each}.{kind}", None)
            names[f"{place}.gate.weight"] = [Part(f"{theirs}.router.classifier.weight")]
            container = f"{theirs}.experts"
            names |= experts(f"{place}.experts", container, count, maps, is_nllb, times)
    return names


def _described(
    base: Described, names: Names, moe: Mapping[str, Any], weights: Mapping[str, Any]
) -> Described:
    """Return a model with experts, or the dense one if no layer has any."""
    if not any(moe["layers"].values()):
        return base._replace(names=names)
    criterion = {"name": "model_and_base", "loss_weights": dict(weights)}
    section = {**base.section, "moe": {**moe, "placement": "both"}}
    return base._replace(section=section, names=names, criterion=criterion)


MOE_FAMILIES: dict[str, Callable[[Config, Tensors, str], Described]] = {
    NLLB_MOE: _nllb_moe,
    SWITCH: _switch,
}
"""How to read a model with experts, by its `model_type`."""
