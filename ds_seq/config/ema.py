"""The section `train.ema`: an exponential moving average of the weights."""

from __future__ import annotations

from pydantic import Field

from ds_seq.config.base import Config, NonNegativeInt, PositiveInt, Probability


class EmaConfig(Config):
    """An exponential moving average of the weights, in fp32, next to the weights themselves."""

    decay: Probability = Field(
        default=0.999,
        description="Share of the average that an update keeps; the weights give the rest. 0.999 "
        "averages about the last 1,000 updates.",
    )
    warmup: NonNegativeInt = Field(
        default=10,
        description="After t updates the decay is at most (1 + t) / (`warmup` + t), so that the "
        "average soon forgets the initial weights; 0: always `decay`.",
    )
    every: PositiveInt = Field(
        default=1,
        description="Average once per this many updates, with the decay raised to this "
        "power: cheaper, and nearly the same.",
    )
    validate_raw: bool = Field(
        default=False,
        description="Validate the raw weights, too: `raw_loss`, `raw_bleu`, ... in the log. The "
        "other figures, and with them the best checkpoint, are always of the average.",
    )
