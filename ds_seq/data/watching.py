"""When a process counts as hung: the rule for worker processes and for ranks of MPI alike."""

from __future__ import annotations

import time

SILENCE = 40.0
"""Seconds without a sign of life after which a process counts as hung."""
TICK = 1.0
"""Seconds between two signs of life."""


class Watched:
    """Tells a process that is silent too long, by the time in which this process was awake."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._last, self._silent = time.monotonic(), 0.0

    def is_late(self, heard: bool) -> bool:
        """Return whether the silence is too long.

        Args:
            heard: whether there was a sign of life since the last call.
        """
        now = time.monotonic()
        # if this process itself was stopped meanwhile, the others may have been, too
        self._silent = 0.0 if heard else self._silent + min(now - self._last, 2 * TICK)
        self._last = now
        return self._silent > self._patience
