"""Metrics of a validation, and the figure that selects the best checkpoint."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from ds_seq.config.base import PLUGIN, Config, FieldErrors, PositiveInt
from ds_seq.names import LOSS, ScoreAverage


class ValidationConfig(Config):
    """What a validation measures; `train.validate_every` sets how often it runs."""

    metrics: Annotated[list[str], PLUGIN] = Field(
        default=["bleu", "chrf"],
        description="Metrics that compare translations of the validation text with the raw "
        "reference: "
        "`bleu`, `chrf`, `chrf++`, `ter`, `rouge1`, `rouge2`, `rougeL`, `rougeLsum` (package "
        "rouge-score), `package.module:Name`, or a metric that the task defines; `[]` translates "
        "nothing.",
    )
    best: str = Field(
        default="bleu",
        description="Figure that selects the best checkpoint: one of `validation.metrics`, or "
        "`loss`, that of the target tokens without the losses of routers and layers.",
    )
    average: ScoreAverage = Field(
        default="pooled",
        description="What the figure of a metric is with several validation texts: `pooled` scores "
        "them as one text, `texts` is the mean of their scores, `pairs` the mean of the scores of "
        "language pairs. Each text also has figures of its own.",
    )
    max_sentences: PositiveInt | None = Field(
        default=None,
        description="Number of sentences translated for the metrics, spread over the files of "
        "`data.raw.valid` in proportion to their sizes; null means all.",
    )

    @model_validator(mode="after")
    def _check_metrics(self) -> ValidationConfig:
        errors = [
            ("metrics", f"{name!r} is listed twice; remove one")
            for name in dict.fromkeys(self.metrics)
            if self.metrics.count(name) > 1
        ]
        if LOSS in self.metrics:
            errors.append(("metrics", f"{LOSS} is always measured; remove it"))
        if errors:
            raise FieldErrors(errors)
        return self
