"""Adapters of VarunGumma/fairseq as the section `model.adapters`."""

from __future__ import annotations

from typing import Any

from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.refusals import Refusals
from ds_seq.names import STACKS

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu"}


def adapters_section(given: Given, refusals: Refusals) -> dict[str, Any] | None:
    """Return the section `adapters`; None if there are none.

    Args:
        given: the arguments.
        refusals: gets what no adapters of ds_seq have.
    """
    stacks = [stack for stack in STACKS if given[f"{stack}_add_adapters"]]
    if not stacks:
        return None
    values: dict[str, Any] = {}
    for what in ("adapter_ids", "adapter_reduction_factor", "train_adapter", "adapter_use_gating"):
        values[what] = given[f"{stacks[0]}_{what}"]
        if any(given[f"{stack}_{what}"] != values[what] for stack in stacks):
            first, second = (given.name(f"{stack}_{what}") for stack in STACKS)
            refusals.add(f"{first}, {second}: one pool has one value; give both the same")
    names = [name.strip() for name in (values["adapter_ids"] or "").split(",") if name.strip()]
    for what in ("adapter_ids", "adapter_reduction_factor"):
        if not values[what]:
            refusals.add(f"{given.name(f'{stacks[0]}_{what}')} is missing")
    activation = given["adapter_activation_fn"]
    if activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        refusals.add(f"--adapter-activation-fn {activation}: not supported; there are {known}")
    return {
        "ids": names,
        "reduction": values["adapter_reduction_factor"] or 1,
        "activation": _ACTIVATIONS.get(activation, "relu"),
        "gate": bool(values["adapter_use_gating"]),
        "norm": "first" if given[f"{stacks[0]}_normalize_before"] else "last",
        "stacks": "both" if len(stacks) == 2 else stacks[0],
        "active": values["train_adapter"],
    }


def trained_adapter(given: Given) -> str | None:
    """Return the adapter that is trained, everything else being frozen; None if there is none."""
    for stack in STACKS:
        if given[f"{stack}_add_adapters"] and given[f"{stack}_train_adapter"]:
            return str(given[f"{stack}_train_adapter"])
    return None
