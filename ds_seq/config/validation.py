"""What a validation measures, and which figure makes a checkpoint the best."""

from __future__ import annotations

from pydantic import Field, model_validator

from ds_seq.config.base import Config, FieldErrors, PositiveInt
from ds_seq.names import LOSS


class ValidationConfig(Config):
    """What a validation measures; when there is one, `train.validate_every` says."""

    metrics: list[str] = Field(
        default=["bleu", "chrf"],
        description="Metrics of the validation text's translations against the raw reference: "
        "`bleu`, `chrf`, `chrf++`, `ter`, `rouge1`, `rouge2`, `rougeL`, `rougeLsum` (package "
        "rouge-score), `package.module:Name`, or what the task has of its own; `[]` translates "
        "nothing.",
    )
    best: str = Field(
        default="bleu",
        description="Figure that makes a checkpoint the best: one of `validation.metrics`, or "
        "`loss`.",
    )
    max_sentences: PositiveInt | None = Field(
        default=None, description="Sentences translated for the metrics; null takes all."
    )

    @model_validator(mode="after")
    def _check_metrics(self) -> ValidationConfig:
        errors = [
            ("metrics", f"{name!r} stands in the list twice")
            for name in dict.fromkeys(self.metrics)
            if self.metrics.count(name) > 1
        ]
        if LOSS in self.metrics:
            errors.append(("metrics", f"{LOSS} is always measured; leave it out"))
        if errors:
            raise FieldErrors(errors)
        return self
