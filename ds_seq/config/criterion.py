"""The `criterion` section: what training minimizes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, field_validator

from ds_seq.config.base import (
    Config,
    ExternalConfig,
    Probability,
    Temperature,
    all_defaults,
    plugin_tag,
)
from ds_seq.config.distillation import DistillationConfig, Weight
from ds_seq.names import (
    BASE,
    ROUTER_LOSSES,
    CandidateSearch,
    ExpertAssignment,
    ExpertPrior,
    Smoothing,
    UtilityName,
)
from ds_seq.plugins import nearest

_Name = Annotated[str, StringConstraints(min_length=1)]
_LOSS_NAMES = (BASE, *ROUTER_LOSSES)


class CrossEntropyConfig(Config):
    """Label-smoothed cross entropy."""

    name: Literal["cross_entropy"] = Field(
        default="cross_entropy", description="Selects this criterion."
    )
    label_smoothing: Probability = Field(
        default=0.1, description="Probability mass taken from the correct token."
    )
    smoothing: Smoothing = Field(
        default="fairseq",
        description="Tokens that share this mass: all others (`fairseq`) or all (`torch`).",
    )
    r_drop: Annotated[float, Field(ge=0.0, le=1e6)] = Field(
        default=0.0,
        description="Weight of the divergence between two passes of each batch with different "
        "dropout (R-Drop, arXiv:2106.14448; 5 there for translation); 0: one pass. Training takes "
        "about twice the time per batch.",
    )

    @property
    def num_passes(self) -> int:
        """How often the model reads each batch in training."""
        return 2 if self.r_drop else 1


class MinimumRiskConfig(Config):
    """Minimum risk training: the expected error of candidates that the model itself generates.

    Shen et al., 2016, arXiv:1512.02433; Edunov et al., 2018, arXiv:1711.04956.
    """

    name: Literal["minimum_risk"] = Field(
        default="minimum_risk", description="Selects this criterion."
    )
    metric: UtilityName = Field(
        default="bleu",
        description="Error of a candidate: 1 minus this sentence score of sacreBLEU (`bleu`, "
        "`chrf`), on plain text.",
    )
    candidates: Annotated[int, Field(ge=2, le=1000)] = Field(
        default=8,
        description="Number of candidates per sentence; equal ones count once. A batch takes about "
        "this many times the memory of a batch of cross entropy.",
    )
    search: CandidateSearch = Field(
        default="sampling",
        description="How candidates are found: drawn from the model (`sampling`), or the best of a "
        "beam search (`beam`).",
    )
    temperature: Temperature = Field(
        default=1.0, description="Divides the logits of which candidates are drawn."
    )
    sharpness: Annotated[float, Field(gt=0.0, le=100.0)] = Field(
        default=0.005,
        description="Exponent of the candidates' probabilities before they are normalized; 0.005 "
        "in Shen et al., 1 in Edunov et al.",
    )
    include_reference: bool = Field(
        default=False, description="Whether the reference is one more candidate."
    )
    ce_weight: Probability = Field(
        default=0.0,
        description="Weight w of the cross entropy of the reference in w * ce + (1 - w) * risk; "
        "0 leaves it out.",
    )
    label_smoothing: Probability = Field(
        default=0.1, description="Probability mass taken from the correct token, for `ce_weight`."
    )
    smoothing: Smoothing = Field(
        default="fairseq",
        description="Tokens that share this mass: all others (`fairseq`) or all (`torch`).",
    )

    @property
    def num_passes(self) -> int:
        """Most targets per source that the model reads in training."""
        return self.candidates + int(self.include_reference or self.ce_weight > 0)


class HardEmConfig(Config):
    """A mixture of experts that share all weights; only the best one of a sentence learns from it.

    Shen et al., 2019, arXiv:1902.07816 (hMoEup, hMoElp, sMoEup, sMoElp). An expert is a symbol that
    starts the decoder.
    """

    name: Literal["hard_em"] = Field(default="hard_em", description="Selects this criterion.")
    experts: Annotated[list[_Name], Field(min_length=2)] = Field(
        description="A symbol of data.vocab.user_symbols for each expert, such as "
        "`[<expert1>, <expert2>]`; `generation.expert` chooses one of them.",
    )
    prior: ExpertPrior = Field(
        default="uniform",
        description="Probabilities of the experts before the target is seen: all equal "
        "(`uniform`), or those of a network that reads the encoded source (`learned`).",
    )
    assignment: ExpertAssignment = Field(
        default="hard",
        description="Who learns from a sentence: the best expert (`hard`), or each expert by its "
        "share in the probability of the target (`soft`). A soft batch takes the memory of as "
        "many batches as there are experts.",
    )
    label_smoothing: Probability = Field(
        default=0.1,
        description="Probability mass taken from the correct token; the best expert is chosen "
        "without.",
    )
    smoothing: Smoothing = Field(
        default="fairseq",
        description="Tokens that share this mass: all others (`fairseq`) or all (`torch`).",
    )

    @property
    def num_passes(self) -> int:
        """How often the model reads each batch in training with gradients."""
        return len(self.experts) if self.assignment == "soft" else 1

    @field_validator("experts")
    @classmethod
    def _check_distinct(cls, experts: list[str]) -> list[str]:
        for name in experts:
            if experts.count(name) > 1:
                raise ValueError(f"{name} is listed twice; each expert needs a symbol of its own")
        return experts


BaseCriterionConfig = Annotated[
    Annotated[CrossEntropyConfig, Tag("cross_entropy")]
    | Annotated[DistillationConfig, Tag("distillation")]
    | Annotated[MinimumRiskConfig, Tag("minimum_risk")]
    | Annotated[HardEmConfig, Tag("hard_em")]
    | Annotated[ExternalConfig, Tag("external")],
    Discriminator(plugin_tag("cross_entropy")),
]


class ModelAndBaseConfig(Config):
    """A base criterion plus the losses of the model itself (MoE routers)."""

    name: Literal["model_and_base"] = Field(
        default="model_and_base", description="Selects this criterion."
    )
    base: BaseCriterionConfig = Field(
        default_factory=all_defaults, description="The criterion on the translations."
    )
    loss_weights: dict[str, Weight] = Field(
        default={},
        description="Weight of each loss: "
        + ", ".join(f"`{name}`" for name in _LOSS_NAMES)
        + ". A missing weight is 1; with null or 0 the loss is only logged.",
    )

    @field_validator("loss_weights", mode="before")
    @classmethod
    def _empty_is_none_given(cls, weights: Any) -> Any:
        return {} if weights is None or weights == "" else weights

    @field_validator("loss_weights")
    @classmethod
    def _check_names(cls, weights: dict[str, float | None]) -> dict[str, float | None]:
        unknown = [name for name in weights if name not in _LOSS_NAMES]
        if unknown:
            hints = ", ".join(f"{name!r}{nearest(name, _LOSS_NAMES)}" for name in unknown)
            raise ValueError(f"no loss {hints}; there are {', '.join(_LOSS_NAMES)}")
        return weights


CriterionConfig = Annotated[
    Annotated[CrossEntropyConfig, Tag("cross_entropy")]
    | Annotated[DistillationConfig, Tag("distillation")]
    | Annotated[MinimumRiskConfig, Tag("minimum_risk")]
    | Annotated[HardEmConfig, Tag("hard_em")]
    | Annotated[ModelAndBaseConfig, Tag("model_and_base")]
    | Annotated[ExternalConfig, Tag("external")],
    Discriminator(plugin_tag("cross_entropy")),
]
