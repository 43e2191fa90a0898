"""The figures of the updates between two lines of the log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from ds_seq.data.batch import Batch
from ds_seq.moe.output import RoutingStats
from ds_seq.reports.metrics import Figures, LossSums


class Window:
    """Sums over the updates since the last line of the log, and the time they took.

    Attributes:
        updates: number of updates since then.
        skipped_before: number of skipped updates of the run at its start.
    """

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, skipped: int) -> None:
        """Begin again, `skipped` updates of the run having been skipped so far."""
        self._sums, self.skipped_before = LossSums(), skipped
        self.updates, self._started = 0, time.monotonic()

    def add(self, parts: Mapping[str, Tensor], stats: list[RoutingStats], batch: Batch) -> None:
        """Add one batch; see `LossSums.add`."""
        self._sums.add(parts, stats, batch)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block, as of a validation, as time of training."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._started += time.monotonic() - began

    def reduce(self) -> Figures:
        """Return the figures of `LossSums.reduce`, and those of speed. A collective."""
        figures = self._sums.reduce()
        seconds = max(time.monotonic() - self._started, 1e-9)
        tokens = figures["tokens"]
        assert isinstance(tokens, float)
        return {
            **figures,
            "tokens_per_second": tokens / seconds,
            "seconds_per_update": seconds / max(self.updates, 1),
        }
