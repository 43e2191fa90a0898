"""The section `model.moe` of a Transformer of fairseq, from its arguments.

Two descendants have experts: one by DeepSpeed, and fairseq's branch `moe`, which NLLB's began with.
"""

from __future__ import annotations

from typing import Any

from ds_seq.compat.fairseq.architectures import HAS_EXPERTS
from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.refusals import Refusals
from ds_seq.plugins import nearest

_SECOND_EXPERTS = {"all": "always", "sampling": "sampled", "random": "random"}


def experts_section(given: Given, refusals: Refusals) -> dict[str, Any] | None:
    """Return the section `moe`; None for a dense model.

    Args:
        given: the arguments.
        refusals: gets what no model of ds_seq has.
    """
    layers = expert_layers(given)
    if not any(layers.values()):
        return _of_deepspeed(given, refusals)
    count, share = given["moe_expert_count"], given["moe_eval_capacity_token_fraction"]
    top_k = 1 if given["moe_top1_expert"] else 2
    if count < top_k:
        refusals.add(f"--moe-expert-count {count}: --moe-freq needs at least {top_k}")
        count = top_k
    section: dict[str, Any] = {
        "num_experts": count,
        "top_k": top_k,
        "layers": layers,
        "drop": "probability" if given["moe_batch_prioritized_routing"] else "position",
        "capacity_factor": 1.0,  # two experts: twice the even share
        # a share of all tokens there, a multiple of the even share here; 0 or less: as in training
        "eval_capacity_factor": 1.0
        if share <= 0
        else None
        if share >= 1
        else share * count / top_k,
        "min_capacity": 0,
    }
    if top_k == 1:
        return section | {"normalize_weights": "none"}
    policy = given["moe_second_expert_policy"]
    if policy not in _SECOND_EXPERTS:
        refusals.add(
            f"--moe-second-expert-policy {policy}: no such policy"
            f"{nearest(policy, _SECOND_EXPERTS)}; there are {', '.join(_SECOND_EXPERTS)}"
        )
    before = given["moe_normalize_gate_prob_before_dropping"]
    return section | {
        "second_expert": _SECOND_EXPERTS.get(policy, "always"),
        "normalize_weights": "before_dropping" if before else "after_dropping",
    }


def expert_layers(given: Given) -> dict[str, list[int]]:
    """Return the layers with experts of each stack by `--moe-freq`, counted from 0."""
    found = {}
    for stack in ("encoder", "decoder"):
        step = max(given[f"{stack}_moe_freq"], given["moe_freq"])
        depth = range(given[f"{stack}_layers"])
        found[stack] = [i for i in depth if step > 0 and (i + 1) % step == 0]
    return found


def _of_deepspeed(given: Given, refusals: Refusals) -> dict[str, Any] | None:
    where = [word for word in ("enc", "dec") if word in (given["deepspeed_moe"] or "")]
    arch = given["arch"] or ""
    if not arch.startswith(HAS_EXPERTS):
        if where:
            refusals.add(f"--deepspeed_moe: --arch {arch} has no experts; take transformer_ds_moe")
        return None
    if not where:
        return None
    if given["activation_fn"] != "relu":
        refusals.add(
            f"--activation-fn {given['activation_fn']}: experts have relu there, whatever it says, "
            "and one activation holds for the whole model here; use relu"
        )
    top_k = given["top_k"]
    section = {
        "num_experts": given["num_experts"],
        "top_k": top_k,
        "placement": {"enc": "encoder", "dec": "decoder"}[where[0]] if len(where) == 1 else "both",
        "every": 2,
        "noise": "jitter",
        "capacity_factor": 1.0,
        "eval_capacity_factor": 4.0,
        "min_capacity": 0,
        "drop": "random" if top_k == 1 else "position",
        "normalize_weights": "none" if top_k == 1 else "after_dropping",
    }
    return section | ({"second_expert": "sampled"} if top_k == 2 else {})
