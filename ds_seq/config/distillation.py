"""The `criterion` section of students, which learn from a teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from ds_seq.config.base import (
    Config,
    FieldErrors,
    NonNegativeInt,
    PositiveInt,
    Probability,
    Temperature,
)
from ds_seq.names import (
    AttentionKind,
    Divergence,
    LayerMatch,
    Precision,
    Projection,
    Smoothing,
    Stack,
    Strategy,
)

Weight = Annotated[float, Field(ge=0.0, le=1e6)] | None
_Name = Annotated[str, StringConstraints(min_length=1)]
TeacherNames = _Name | Annotated[list[_Name], Field(min_length=1)]


class _MatchConfig(Config):
    """Mapping of student layers to the teacher layers that they imitate."""

    weight: Weight = Field(default=1.0, description="Weight of this term; null or 0 only logs it.")
    match: LayerMatch = Field(
        default="supervise",
        description="Choice of teacher layers: `supervise` takes the last layer of each of equal "
        "parts, `copy` the layers that `ds-seq make-student` copies, `even` evenly spaced layers.",
    )
    encoder: list[NonNegativeInt] | None = Field(
        default=None,
        description="Teacher layer (from 0) for each encoder layer of the student, instead of "
        "`match`; [] leaves the encoder out.",
    )
    decoder: list[NonNegativeInt] | None = Field(
        default=None, description="Like `encoder`, for the decoder."
    )

    def layers_of(self, stack: Stack) -> list[int] | None:
        """Return the teacher layers given for `stack`; None leaves them to `match`."""
        return self.encoder if stack == "encoder" else self.decoder


class HiddenConfig(_MatchConfig):
    """Layer-wise distillation: squared error between hidden states."""

    normalize: bool = Field(
        default=False,
        description="Normalize each hidden state to mean 0 and variance 1 before the comparison.",
    )
    projection: Projection = Field(
        default="none",
        description="`learned` maps the student's hidden states to the teacher's width, by one "
        "trained matrix per stack, as a student of another width requires; not part of the model.",
    )

    @model_validator(mode="after")
    def _check_projection(self) -> HiddenConfig:
        if self.projection != "none" and not self.weight:
            raise FieldErrors(
                [("projection", "is not trained if the weight of the term is 0; set weight")]
            )
        return self


class AttentionConfig(_MatchConfig):
    """Layer-wise distillation: divergence between attention maps, mean over heads and queries."""

    kinds: list[AttentionKind] = Field(
        default=["encoder", "decoder", "cross"],
        min_length=1,
        description="Attention maps to compare: self-attention of the `encoder` and the `decoder`, "
        "and `cross` attention.",
    )


class DistillationConfig(Config):
    """Cross entropy and knowledge distillation from frozen teachers."""

    name: Literal["distillation"] = Field(
        default="distillation", description="Selects this criterion."
    )
    teacher: TeacherNames | None = Field(
        default=None,
        description="Run folder, exported folder or exported file of the teacher; a list is an "
        "ensemble, whose probabilities are averaged.",
    )
    checkpoint: str = Field(
        default="best",
        min_length=1,
        description="Checkpoint to load from each teacher's run folder; `best:raw` and the like do "
        "without the average of `train.ema`.",
    )
    cache: str | None = Field(
        default=None,
        min_length=1,
        description="Folder written by `ds-seq teacher-cache`, instead of `teacher`.",
    )
    teacher_precision: Precision | None = Field(
        default=None,
        description="Number format of the teachers; null means the format of their training on a "
        "GPU and fp32 on a CPU.",
    )
    teacher_expert_parallel: PositiveInt = Field(
        default=1, description="Number of ranks that share the teachers' experts."
    )
    teacher_zero3: bool = Field(
        default=False, description="Partition the teachers' weights over all ranks (ZeRO stage 3)."
    )
    strategy: Strategy = Field(
        default="word_seq_level",
        description="`word_level`: distillation only. The others add cross entropy: "
        "`word_seq_level` distills all tokens, `batch_level` the hardest tokens of a batch, "
        "`global_level` tokens that are hard compared with those of recent updates, "
        "`global_language_wise` the same per source language.",
    )
    rate: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.5,
        description="Fraction of tokens that the last three strategies distill; 1 distills all.",
    )
    queue_size: PositiveInt = Field(
        default=30_000,
        description="Number of token losses that the global strategies keep, per language.",
    )
    shared_queue: bool = Field(
        default=True,
        description="Share one queue among all ranks, so that tokens are selected independently of "
        "the number of ranks; a batch is compared with earlier updates, so the first update, and "
        "the first with a new language, distills all tokens. false: each rank compares "
        "with its own batches, including the current one.",
    )
    divergence: Divergence = Field(
        default="forward_kl",
        description="Divergence between student and teacher: `forward_kl` KL(teacher || student), "
        "`reverse_kl` KL(student || teacher), `js` Jensen-Shannon, `tv` total variation.",
    )
    temperature: Temperature = Field(
        default=1.0,
        description="Softens both distributions; the divergence is multiplied by its square.",
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
        description="Weight of the cross entropy; null or 0 only logs it, as does `word_level`.",
    )
    label_smoothing: Probability = Field(
        default=0.1, description="Probability mass taken from the correct token."
    )
    smoothing: Smoothing = Field(
        default="fairseq",
        description="Tokens that share this mass: all others (`fairseq`) or all (`torch`).",
    )
    hidden: HiddenConfig | None = Field(
        default=None, description="Also match hidden states; null disables this."
    )
    attention: AttentionConfig | None = Field(
        default=None, description="Also match attention maps; null disables this."
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
            errors.append(
                ("kd_weight", "all weights are 0, so nothing is learned; set one above 0")
            )
        if errors:
            raise FieldErrors(errors)
        return self

    def _source_errors(self) -> list[tuple[str, str]]:
        errors = []
        if (self.teacher is None) == (self.cache is None):
            errors.append(("teacher", "give either teacher or cache"))
        if self.cache is not None and self.top_k is not None:
            errors.append(("top_k", "is set by the cache; remove it"))
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
                (
                    "teacher_zero3",
                    "cannot be combined with teacher_expert_parallel; use one of them",
                )
            )
        return errors

    def _layer_errors(self) -> list[tuple[str, str]]:
        errors = []
        for name, section in (("hidden", self.hidden), ("attention", self.attention)):
            if section is None:
                continue
            if self.cache is not None:
                errors.append((name, "a cache contains no layers; set teacher instead"))
            elif len(self.teachers) > 1:
                errors.append((name, "needs one teacher, not an ensemble"))
        return errors

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term in the total, by name: `ce`, `kd`, `hidden`, `attention`."""
        sections = {"hidden": self.hidden, "attention": self.attention}
        layers = {name: section.weight for name, section in sections.items() if section}
        ce = None if self.strategy == "word_level" else self.ce_weight
        return {
            name: weight or 0.0
            for name, weight in {"ce": ce, "kd": self.kd_weight, **layers}.items()
        }
