"""Checks of the section `model.moe`: which options a router has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_seq.config.model.router import ExternalRouterConfig

if TYPE_CHECKING:
    from ds_seq.config.model.moe import MoeConfig


def router_errors(moe: MoeConfig) -> list[tuple[str, str]]:
    """Return options that the router does not have, as (field, message) pairs."""
    if isinstance(moe.router, ExternalRouterConfig):
        return _external_errors(moe, moe.router)
    return _builtin_errors(moe)


def _builtin_errors(moe: MoeConfig) -> list[tuple[str, str]]:
    errors = _expert_choice_errors(moe) if moe.router == "expert_choice" else []
    if moe.load_balance == "global" and moe.router == "hash":
        errors.append(("load_balance", "router hash cannot be balanced; use rank"))
    if not moe.has_capacity and moe.eval_capacity_factor is not None:
        errors.append(("eval_capacity_factor", f"router {moe.router} drops nothing; leave it null"))
    if moe.second_expert != "always" and (
        moe.top_k != 2 or moe.router not in ("softmax", "cosine")
    ):
        errors.append(("second_expert", f"{moe.second_expert} needs top_k 2 and softmax or cosine"))
    if moe.noise != "none" and moe.router in ("expert_choice", "language", "hash"):
        errors.append(("noise", f"router {moe.router} supports none; use none"))
    if moe.noise == "gumbel" and moe.router == "sigmoid":
        errors.append(("noise", "sigmoid scores are not a distribution to sample from; use jitter"))
    if moe.router_dim is not None and moe.router != "cosine":
        errors.append(("router_dim", f"applies to router cosine, not {moe.router}; leave it null"))
    return errors


def _expert_choice_errors(moe: MoeConfig) -> list[tuple[str, str]]:
    errors = []
    in_decoder = moe.placement != "encoder" and (moe.layers is None or bool(moe.layers.decoder))
    if in_decoder:
        errors.append(
            (
                "router",
                "expert_choice looks at the whole sentence, which a decoder has not read "
                "yet; use placement encoder, or another router",
            )
        )
    if moe.load_balance == "global":
        errors.append(("load_balance", "expert_choice is always balanced; use rank"))
    if moe.normalization != "none":
        errors.append(
            (
                "normalize_weights",
                "each expert's own score is the weight of the tokens that it chose; use none",
            )
        )
    return errors


def _external_errors(moe: MoeConfig, router: ExternalRouterConfig) -> list[tuple[str, str]]:
    """Report options of built-in routers, which an external router would ignore."""
    fields = type(moe).model_fields
    builtin_only = ("router_dim", "bias_rate", "noise", "second_expert", "load_balance")
    return [
        (
            name,
            f"applies to built-in routers; set options of {router.name} in "
            "model.moe.router.options",
        )
        for name in builtin_only
        if vars(moe)[name] != fields[name].default
    ]
