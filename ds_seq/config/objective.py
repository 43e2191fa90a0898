"""What training minimises: the criterions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from ds_seq.config.base import (
    Config,
    ExternalConfig,
    NonNegativeFloat,
    Probability,
    plugin_tag,
)
from ds_seq.plugins import nearest

Smoothing = Literal["fairseq", "torch"]
LOSS_NAMES = ("base", "load_balance", "router_z", "budget")


class CrossEntropyConfig(Config):
    """Label-smoothed cross entropy."""

    name: Literal["cross_entropy"] = Field(default="cross_entropy", description="This criterion.")
    label_smoothing: Probability = Field(
        default=0.1, description="Probability mass taken from the right token."
    )
    smoothing: Smoothing = Field(
        default="fairseq",
        description="Who shares that mass: all other tokens (`fairseq`) or all tokens (`torch`).",
    )


class DistillationConfig(Config):
    """Word-level knowledge distillation from a frozen teacher (Kim and Rush 2016)."""

    name: Literal["distillation"] = Field(default="distillation", description="This criterion.")
    teacher: str = Field(min_length=1, description="Run folder or exported folder of the teacher.")
    checkpoint: str = Field(
        default="best", min_length=1, description="Checkpoint of the teacher's run folder."
    )
    kd_weight: NonNegativeFloat = Field(
        default=1.0, description="Weight of the divergence from the teacher."
    )
    ce_weight: NonNegativeFloat = Field(
        default=1.0, description="Weight of the label-smoothed cross entropy."
    )
    label_smoothing: Probability = Field(
        default=0.1, description="Probability mass taken from the right token."
    )
    smoothing: Smoothing = Field(
        default="fairseq",
        description="Who shares that mass: all other tokens (`fairseq`) or all tokens (`torch`).",
    )
    temperature: float = Field(
        default=1.0, gt=0.0, description="Softens both distributions before they are compared."
    )


BaseCriterionConfig = Annotated[
    Annotated[CrossEntropyConfig, Tag("cross_entropy")]
    | Annotated[DistillationConfig, Tag("distillation")]
    | Annotated[ExternalConfig, Tag("external")],
    Discriminator(plugin_tag("cross_entropy")),
]


class ModelAndBaseConfig(Config):
    """A base criterion plus the model's own losses: those of the MoE gates."""

    name: Literal["model_and_base"] = Field(default="model_and_base", description="This criterion.")
    base: BaseCriterionConfig = Field(
        default_factory=CrossEntropyConfig, description="The criterion on the translations."
    )
    loss_weights: dict[str, float | None] = Field(
        default_factory=dict,
        description="Weights by loss: "
        + ", ".join(f"`{name}`" for name in LOSS_NAMES)
        + ". A missing one counts 1; null or 0 leaves the loss out of the total, but it is logged.",
    )

    @field_validator("loss_weights", mode="before")
    @classmethod
    def _empty_is_none_given(cls, weights: Any) -> Any:
        return {} if weights is None or weights == "" else weights

    @field_validator("loss_weights")
    @classmethod
    def _check_names(cls, weights: dict[str, float | None]) -> dict[str, float | None]:
        unknown = [name for name in weights if name not in LOSS_NAMES]
        if unknown:
            hints = ", ".join(f"{name!r}{nearest(name, LOSS_NAMES)}" for name in unknown)
            raise ValueError(f"no loss {hints}; there are {', '.join(LOSS_NAMES)}")
        return weights


CriterionConfig = Annotated[
    Annotated[CrossEntropyConfig, Tag("cross_entropy")]
    | Annotated[DistillationConfig, Tag("distillation")]
    | Annotated[ModelAndBaseConfig, Tag("model_and_base")]
    | Annotated[ExternalConfig, Tag("external")],
    Discriminator(plugin_tag("cross_entropy")),
]
