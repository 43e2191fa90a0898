"""An exponential moving average of the weights that an engine trains (`train.ema`).

After each applied update, average = d * average + (1 - d) * weights, as in Polyak and Juditsky
(1992), "Acceleration of stochastic approximation by averaging". The decay d is bounded at the start
by (1 + t) / (warmup + t), as in TensorFlow's `ExponentialMovingAverage`.

A rank averages what its optimizer updates: with ZeRO, its slice of the fp32 weights. So an update
needs no communication, and the average takes 4 bytes per weight, divided as the optimizer's state.
Whoever needs whole tensors by name swaps the average with the weights and reads those, in any
layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ds_seq.config.ema import EmaConfig
from ds_seq.training.engine import Engine
from ds_seq.training.rewind import round_weights
from ds_seq.training.state import FullState

_SWAPPED_AT_ONCE = 1 << 22  # values, so that swapping needs little memory


class Ema:
    """The average of the weights of one engine; it starts as the weights.

    Args:
        engine: the engine, before its first update.
        config: the section `train.ema`.

    Attributes:
        updates: number of updates that the average has seen.
        validates_raw: whether validations measure the weights themselves, too.
    """

    def __init__(self, engine: Engine, config: EmaConfig) -> None:
        self._engine, self._config = engine, config
        self._weights = [weights.detach() for weights in FullState(engine.deepspeed).optimized()]
        self._averages = [weights.clone() for weights in self._weights]
        self.updates = 0
        self.validates_raw = config.validate_raw

    def decay_after(self, updates: int) -> float:
        """Return the decay that the update with this number, from 1, is averaged with."""
        bound = (1 + updates) / (self._config.warmup + updates)
        return float(min(self._config.decay, bound) ** self._config.every)

    @torch.no_grad()
    def update(self) -> None:
        """Average the weights after an update that was applied."""
        self.updates += 1
        if self.updates % self._config.every == 0:
            share = 1.0 - self.decay_after(self.updates)
            torch._foreach_lerp_(self._averages, self._weights, share)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew with the present weights."""
        for average, weights in zip(self._averages, self._weights, strict=True):
            average.copy_(weights)
        self.updates = 0

    @contextmanager
    def as_fp32_weights(self) -> Iterator[None]:
        """Let the average be the fp32 weights inside the block; the model does not change.

        Without ZeRO in fp32, where the model's weights are these, it does. Not a collective.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @contextmanager
    def as_weights(self) -> Iterator[None]:
        """Let the average be the weights of the model inside the block. A collective.

        An error inside the block leaves the model with the average: ranks that fail cannot wait for
        the others, and nothing is trained after that.
        """
        with self.as_fp32_weights():
            round_weights(self._engine)
            yield
        round_weights(self._engine)

    @torch.no_grad()
    def _swap(self) -> None:
        for pair in zip(self._averages, self._weights, strict=True):
            average, weights = map(torch.atleast_1d, pair)
            rows = max(1, _SWAPPED_AT_ONCE * len(average) // max(1, average.numel()))
            for ours, theirs in zip(average.split(rows), weights.split(rows), strict=True):
                held = ours.clone()
                ours.copy_(theirs)
                theirs.copy_(held)
