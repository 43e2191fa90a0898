"""Routers, which choose the experts of each token: `router: cosine`, or an external one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Tag

from ds_seq.config.base import EXTERNAL_TAG, ExternalConfig, shown
from ds_seq.plugins import nearest

RouterName = Literal["softmax", "cosine", "sigmoid", "expert_choice", "language", "hash"]
ROUTERS: tuple[RouterName, ...] = get_args(RouterName)


class ExternalRouterConfig(ExternalConfig):
    """An external router, called with `d_model`, `num_experts`, `top_k` and its options."""


def _router(value: Any) -> Any:
    """Return the name of a built-in router, or the section of an external one."""
    if isinstance(value, Mapping) and set(value) == {"name"}:
        value = value["name"]
    if isinstance(value, Mapping | ExternalConfig) or value in ROUTERS:
        return value
    if isinstance(value, str) and ":" in value:
        return {"name": value}
    raise ValueError(
        f"no router {shown(value)}{nearest(str(value), ROUTERS)}; there are "
        f"{', '.join(ROUTERS)}, or `package.module:Name`"
    )


def _router_tag(value: Any) -> str:
    return EXTERNAL_TAG if isinstance(value, Mapping | ExternalConfig) else "ours"


RouterConfig = Annotated[
    Annotated[RouterName, Tag("ours")] | Annotated[ExternalRouterConfig, Tag(EXTERNAL_TAG)],
    Discriminator(_router_tag),
    BeforeValidator(_router),
]


def router_params(
    router: RouterName | ExternalRouterConfig,
    router_dim: int | None,
    d_model: int,
    num_experts: int,
) -> int:
    """Return the number of parameters of one router; 0 for an external one, as it is unknown.

    Args:
        router: name of a built-in router, or section of an external one.
        router_dim: width of the low-dimensional space of the cosine router; None is its default.
        d_model: width of the model.
        num_experts: number of experts of the layer.
    """
    if isinstance(router, ExternalRouterConfig):
        return 0
    if router == "cosine":  # projection, one embedding per expert, temperature
        dim = router_dim or max(num_experts // 2, 16)
        return dim * (d_model + num_experts) + 1
    return 0 if router == "hash" else num_experts * d_model
