"""The `optimizer` and `scheduler` sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ds_seq.config.base import (
    Config,
    ExternalConfig,
    FieldErrors,
    NonNegativeInt,
    PositiveInt,
    Probability,
    plugin_tag,
)
from ds_seq.config.selection import SELECTION_HELP, PartName
from ds_seq.names import DecayShape

LearningRate = Annotated[float, Field(gt=0.0, le=1000.0)]
OuterLearningRate = Annotated[float, Field(ge=0.0, le=1000.0)]
"""Learning rate at the start of a warm-up or at the end of a decay."""
WeightDecay = Annotated[float, Field(ge=0.0, le=100.0)]

LrFactors = dict[PartName, Annotated[float, Field(gt=0.0, le=1000.0)]]
_FACTORS = (
    "Factors of the learning rate of parts, such as `{experts: 0.5, routers: 2.0}`: "
    f"{SELECTION_HELP}. What several entries name has the product of their factors."
)


class AdamConfig(Config):
    """Adam (Kingma and Ba 2015); `adamw` decouples the weight decay."""

    name: Literal["adam", "adamw"] = Field(
        default="adamw",
        description="`adamw` decays the weights themselves (as fairseq's `adam` does); `adam` adds "
        "the decay to the gradient.",
    )
    lr: LearningRate = Field(default=5e-4, description="Peak learning rate.")
    betas: tuple[Probability, Probability] = Field(
        default=(0.9, 0.98), description="Decay rates of the first and second moments."
    )
    eps: float = Field(
        default=1e-8, gt=0.0, le=1.0, description="Added to the square root of the second moment."
    )
    weight_decay: WeightDecay = Field(
        default=0.0, description="Weight decay; not applied to norms and biases."
    )
    lr_factors: LrFactors = Field(default={}, description=_FACTORS)


class AdafactorConfig(Config):
    """Adafactor (Shazeer and Stern 2018): second moments as row and column sums."""

    name: Literal["adafactor"] = Field(default="adafactor", description="Selects this optimizer.")
    lr: LearningRate = Field(default=5e-4, description="Peak learning rate.")
    beta2_decay: float = Field(
        default=-0.8,
        ge=-10.0,
        lt=0.0,
        description="The second moment's decay at update t is 1 - t ** this.",
    )
    clip_threshold: float = Field(
        default=1.0, ge=1.0, description="Maximum root mean square of an update."
    )
    weight_decay: WeightDecay = Field(
        default=0.0, description="Weight decay; not applied to norms and biases."
    )
    lr_factors: LrFactors = Field(default={}, description=_FACTORS)


class SgdConfig(Config):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = Field(default="sgd", description="Selects this optimizer.")
    lr: LearningRate = Field(default=0.1, description="Peak learning rate.")
    momentum: Probability = Field(
        default=0.0, description="Fraction of the last step that is kept."
    )
    nesterov: bool = Field(default=False, description="Use Nesterov momentum.")
    weight_decay: WeightDecay = Field(
        default=0.0, description="Weight decay; not applied to norms and biases."
    )
    lr_factors: LrFactors = Field(default={}, description=_FACTORS)

    @model_validator(mode="after")
    def _check_nesterov(self) -> SgdConfig:
        if self.nesterov and self.momentum == 0.0:
            raise FieldErrors([("nesterov", "needs a momentum above 0")])
        return self


OptimizerConfig = Annotated[
    Annotated[AdamConfig, Tag("adam")]
    | Annotated[AdamConfig, Tag("adamw")]
    | Annotated[AdafactorConfig, Tag("adafactor")]
    | Annotated[SgdConfig, Tag("sgd")]
    | Annotated[ExternalConfig, Tag("external")],
    Discriminator(plugin_tag("adamw")),
]

_WARMUP = "Number of linear warm-up updates."
_TOTAL = "Update at which the decay ends; null means `train.max_updates`."
_END = "Learning rate at the end of the decay."


class InverseSqrtConfig(Config):
    """Linear warm-up, then lr * sqrt(warmup_updates / update) (Vaswani et al. 2017)."""

    name: Literal["inverse_sqrt"] = Field(
        default="inverse_sqrt", description="Selects this schedule."
    )
    warmup_updates: PositiveInt = Field(default=4000, description=_WARMUP)
    warmup_init_lr: OuterLearningRate = Field(
        default=0.0, description="Learning rate at the start of the warm-up."
    )


class CosineConfig(Config):
    """Linear warm-up, then half a cosine period down to `min_lr`."""

    name: Literal["cosine"] = Field(default="cosine", description="Selects this schedule.")
    warmup_updates: NonNegativeInt = Field(default=4000, description=_WARMUP)
    min_lr: OuterLearningRate = Field(default=0.0, description=_END)
    total_updates: PositiveInt | None = Field(default=None, description=_TOTAL)


class LinearConfig(Config):
    """Linear warm-up, then a straight line down to `end_lr`."""

    name: Literal["linear"] = Field(default="linear", description="Selects this schedule.")
    warmup_updates: NonNegativeInt = Field(default=4000, description=_WARMUP)
    end_lr: OuterLearningRate = Field(default=0.0, description=_END)
    total_updates: PositiveInt | None = Field(default=None, description=_TOTAL)


class PolynomialConfig(Config):
    """Linear warm-up, then (fraction of updates left) ** power down to `end_lr`."""

    name: Literal["polynomial"] = Field(default="polynomial", description="Selects this schedule.")
    warmup_updates: NonNegativeInt = Field(default=4000, description=_WARMUP)
    power: float = Field(
        default=1.0, gt=0.0, le=100.0, description="Exponent; 1 is a straight line."
    )
    end_lr: OuterLearningRate = Field(default=0.0, description=_END)
    total_updates: PositiveInt | None = Field(default=None, description=_TOTAL)


class WarmupStableDecayConfig(Config):
    """Linear warm-up, a constant learning rate, then a short decay to `end_lr`.

    As good as a cosine (Haegele et al. 2024, arXiv:2405.18392), but a checkpoint from before the
    decay can be trained for longer.
    """

    name: Literal["warmup_stable_decay"] = Field(
        default="warmup_stable_decay", description="Selects this schedule."
    )
    warmup_updates: NonNegativeInt = Field(default=4000, description=_WARMUP)
    decay_fraction: float = Field(
        default=0.2,
        gt=0.0,
        le=1.0,
        description="Share of all updates, at the end, over which the learning rate falls.",
    )
    decay: DecayShape = Field(
        default="one_minus_sqrt",
        description="Shape of the fall over the completed share p of it: `one_minus_sqrt` is "
        "1 - sqrt(p), fast at first; `linear` is 1 - p.",
    )
    end_lr: OuterLearningRate = Field(default=0.0, description=_END)
    total_updates: PositiveInt | None = Field(default=None, description=_TOTAL)

    def decay_updates(self, total: int) -> int:
        """Return the number of updates, at least 1, over which the learning rate falls."""
        return max(round(self.decay_fraction * total), 1)


class ConstantConfig(Config):
    """Linear warm-up, then a constant learning rate."""

    name: Literal["constant"] = Field(default="constant", description="Selects this schedule.")
    warmup_updates: NonNegativeInt = Field(default=0, description=_WARMUP)


DecayingConfig = CosineConfig | LinearConfig | PolynomialConfig | WarmupStableDecayConfig
"""Schedules that end at a given update."""

SchedulerConfig = Annotated[
    Annotated[InverseSqrtConfig, Tag("inverse_sqrt")]
    | Annotated[CosineConfig, Tag("cosine")]
    | Annotated[LinearConfig, Tag("linear")]
    | Annotated[PolynomialConfig, Tag("polynomial")]
    | Annotated[WarmupStableDecayConfig, Tag("warmup_stable_decay")]
    | Annotated[ConstantConfig, Tag("constant")]
    | Annotated[ExternalConfig, Tag("external")],
    Discriminator(plugin_tag("inverse_sqrt")),
]
