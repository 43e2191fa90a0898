"""Losses and gradient norms far above their recent median."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

_REMEMBERED = 100
_LEAST = 20
"""Values without which there is no median to compare with."""


class Spikes:
    """Compares the values of a figure with the median of the last 100 of them.

    Args:
        factor: multiple of the median above which a value is a spike; None: no value is.
    """

    def __init__(self, factor: float | None) -> None:
        self._factor = factor
        self._values: deque[float] = deque(maxlen=_REMEMBERED)

    def median_below(self, value: float) -> float | None:
        """Remember a value; if it is a spike, return the median of the values before it.

        Values that are not finite are neither spikes nor remembered. Nor is anything a spike while
        there are fewer than 20 values, or where the median is not positive.
        """
        if self._factor is None or not math.isfinite(value):
            return None
        middle = median(self._values) if len(self._values) >= _LEAST else 0.0
        self._values.append(value)
        return middle if middle > 0.0 and value > self._factor * middle else None

    def state(self) -> list[float]:
        """Return the remembered values, oldest first."""
        return list(self._values)

    def load_state(self, values: list[float]) -> None:
        """Inverse of `state`."""
        self._values = deque(values, maxlen=_REMEMBERED)
