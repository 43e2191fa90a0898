"""What training minimizes: the criterions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, field_validator, model_validator

from ds_seq.config.base import (
    Config,
    ExternalConfig,
    FieldErrors,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Probability,
    plugin_tag,
)
from ds_seq.names import (
    BASE,
    ROUTER_LOSSES,
    AttentionKind,
    Divergence,
    LayerMatch,
    Precision,
    Smoothing,
    Stack,
    Strategy,
)
from ds_seq.plugins import nearest

Weight = NonNegativeFloat | None
_Name = Annotated[str, StringConstraints(min_length=1)]
TeacherNames = _Name | Annotated[list[_Name], Field(min_length=1)]
_LOSS_NAMES = (BASE, *ROUTER_LOSSES)


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


class _MatchConfig(Config):
    """Which layer of the teacher each layer of the student imitates."""

    weight: Weight = Field(default=1.0, description="Weight of this term; null or 0 only logs it.")
    match: LayerMatch = Field(
        default="supervise",
        description="Teacher layers by table: `supervise` takes those that stand at the ends of "
        "equal parts, `copy` those that `ds-seq make-student` copies, `even` is evenly spaced.",
    )
    encoder: list[NonNegativeInt] | None = Field(
        default=None,
        description="For each encoder layer of the student a teacher layer, from 0, in place of "
        "`match`; [] leaves the encoder out.",
    )
    decoder: list[NonNegativeInt] | None = Field(
        default=None, description="The same for the decoder."
    )

    def layers_of(self, stack: Stack) -> list[int] | None:
        """The teacher layers given for ``stack``; None leaves them to `match`."""
        return self.encoder if stack == "encoder" else self.decoder


class HiddenConfig(_MatchConfig):
    """Layer-wise distillation: squared error between hidden states."""

    normalize: bool = Field(
        default=False,
        description="Bring every hidden state to mean 0 and variance 1 before comparing.",
    )


class AttentionConfig(_MatchConfig):
    """Layer-wise distillation: divergence between attention maps, mean over heads and queries."""

    kinds: list[AttentionKind] = Field(
        default=["encoder", "decoder", "cross"],
        min_length=1,
        description="Maps that are compared: self-attention of the `encoder` and the `decoder`, "
        "and `cross` attention.",
    )


class DistillationConfig(Config):
    """Cross entropy and knowledge distillation from frozen teachers."""

    name: Literal["distillation"] = Field(default="distillation", description="This criterion.")
    teacher: TeacherNames | None = Field(
        default=None,
        description="Run folder, exported folder or exported file of the teacher; a list of them "
        "is an ensemble, whose probabilities are averaged.",
    )
    checkpoint: str = Field(
        default="best", min_length=1, description="Checkpoint of the teachers' run folders."
    )
    cache: str | None = Field(
        default=None,
        min_length=1,
        description="In place of `teacher`: a folder that `ds-seq teacher-cache` has written.",
    )
    teacher_precision: Precision | None = Field(
        default=None,
        description="Number format of the teachers; null is that of their training on a GPU, fp32 "
        "on a CPU.",
    )
    teacher_expert_parallel: PositiveInt = Field(
        default=1, description="Ranks that share the experts of the teachers."
    )
    teacher_zero3: bool = Field(
        default=False, description="Spread the teachers' weights over all ranks (ZeRO stage 3)."
    )
    strategy: Strategy = Field(
        default="word_seq_level",
        description="`word_level`: KD alone. The others add the cross entropy: `word_seq_level` "
        "distils all tokens, `batch_level` the hardest of a batch, `global_level` those that are "
        "hard beside the tokens of the last updates, `global_language_wise` the same within each "
        "source language.",
    )
    rate: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.5, description="Share of the tokens that the last three strategies distil."
    )
    queue_size: PositiveInt = Field(
        default=30_000,
        description="Tokens whose losses the global strategies remember, for each language.",
    )
    shared_queue: bool = Field(
        default=True,
        description="One queue for all ranks, with which every layout selects the same tokens: a "
        "batch is judged by earlier updates. false: each rank judges by what it saw itself, the "
        "batch included.",
    )
    divergence: Divergence = Field(
        default="forward_kl",
        description="Between student and teacher: `forward_kl` KL(teacher || student), "
        "`reverse_kl` KL(student || teacher), `js` Jensen-Shannon, `tv` total variation.",
    )
    temperature: Annotated[float, Field(gt=0.0)] = Field(
        default=1.0,
        description="Softens both distributions; the term is multiplied by its square.",
    )
    top_k: PositiveInt | None = Field(
        default=None,
        description="Keep only the teacher's k most probable tokens, renormalized; null keeps all.",
    )
    kd_weight: Weight = Field(
        default=1.0, description="Weight of the divergence; null or 0 only logs it."
    )
    ce_weight: Weight = Field(
        default=1.0,
        description="Weight of the cross entropy; null or 0 only logs it, as `word_level` does.",
    )
    label_smoothing: Probability = Field(
        default=0.1, description="Probability mass taken from the right token."
    )
    smoothing: Smoothing = Field(
        default="fairseq",
        description="Who shares that mass: all other tokens (`fairseq`) or all tokens (`torch`).",
    )
    hidden: HiddenConfig | None = Field(
        default=None, description="Imitate hidden states, too; null does not compare them."
    )
    attention: AttentionConfig | None = Field(
        default=None, description="Imitate attention maps, too; null does not compare them."
    )

    @property
    def teachers(self) -> list[str]:
        """Names of the live teachers."""
        names = self.teacher if self.teacher is not None else []
        return [names] if isinstance(names, str) else names

    @model_validator(mode="after")
    def _check(self) -> DistillationConfig:
        errors = [*self._source_errors(), *self._layer_errors()]
        if not any(self.weights.values()):
            errors.append(("kd_weight", "all weights are 0, so there is nothing to learn from"))
        if errors:
            raise FieldErrors(errors)
        return self

    def _source_errors(self) -> list[tuple[str, str]]:
        errors = []
        if (self.teacher is None) == (self.cache is None):
            errors.append(("teacher", "give either teacher or cache"))
        if self.cache is not None and self.top_k is not None:
            errors.append(("top_k", "the cache decides it; leave it out"))
        if self.divergence == "reverse_kl" and (self.cache is not None or self.top_k is not None):
            errors.append(
                (
                    "divergence",
                    "reverse_kl is infinite where only the teacher's top k are known; use "
                    "forward_kl, js or tv",
                )
            )
        if self.teacher_zero3 and self.teacher_expert_parallel > 1:
            errors.append(
                ("teacher_zero3", "contradicts teacher_expert_parallel; take one of them")
            )
        return errors

    def _layer_errors(self) -> list[tuple[str, str]]:
        errors = []
        for name, section in (("hidden", self.hidden), ("attention", self.attention)):
            if section is None:
                continue
            if self.cache is not None:
                errors.append((name, "a cache holds no layers; name the teacher itself"))
            elif len(self.teachers) > 1:
                errors.append((name, "needs one teacher, not an ensemble"))
        return errors

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term in the total, by name: ``ce``, ``kd``, ``hidden``, ``attention``."""
        sections = {"hidden": self.hidden, "attention": self.attention}
        layers = {name: section.weight for name, section in sections.items() if section}
        ce = None if self.strategy == "word_level" else self.ce_weight
        return {
            name: weight or 0.0
            for name, weight in {"ce": ce, "kd": self.kd_weight, **layers}.items()
        }


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
        + ", ".join(f"`{name}`" for name in _LOSS_NAMES)
        + ". A missing one counts 1; null or 0 leaves the loss out of the total, but it is logged.",
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
    | Annotated[ModelAndBaseConfig, Tag("model_and_base")]
    | Annotated[ExternalConfig, Tag("external")],
    Discriminator(plugin_tag("cross_entropy")),
]
