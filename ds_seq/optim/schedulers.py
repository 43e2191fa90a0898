"""Learning-rate schedules: pure functions of the update number (1, 2, ...)."""

from __future__ import annotations

import math
from collections.abc import Callable

from ds_seq.names import DecayShape

Schedule = Callable[[int], float]


def warmed_up(after: Schedule, lr: float, warmup_updates: int, initial: float = 0.0) -> Schedule:
    """Return a linear warm-up from `initial` to `lr`, followed by `after(update)`."""

    def schedule(update: int) -> float:
        if update < warmup_updates:
            return initial + (lr - initial) * update / warmup_updates
        return after(update)

    return schedule


def inverse_sqrt(lr: float, warmup_updates: int, initial: float = 0.0) -> Schedule:
    """Return `lr * sqrt(warmup / update)` after the warm-up (Vaswani et al., arXiv:1706.03762)."""
    scale = lr * math.sqrt(max(warmup_updates, 1))
    return warmed_up(lambda update: scale / math.sqrt(update), lr, warmup_updates, initial)


def cosine(lr: float, warmup_updates: int, total_updates: int, min_lr: float) -> Schedule:
    """Return half a cosine from `lr` to `min_lr` (arXiv:1608.03983, without restarts)."""

    def after(update: int) -> float:
        progress = _progress(update, warmup_updates, total_updates)
        return min_lr + 0.5 * (lr - min_lr) * (1.0 + math.cos(math.pi * progress))

    return warmed_up(after, lr, warmup_updates)


def polynomial(
    lr: float, warmup_updates: int, total_updates: int, end_lr: float, power: float
) -> Schedule:
    """Return a decay from `lr` to `end_lr` by `(1 - progress) ** power`; power 1 is linear."""

    def after(update: int) -> float:
        progress = _progress(update, warmup_updates, total_updates)
        return end_lr + (lr - end_lr) * (1.0 - progress) ** power

    return warmed_up(after, lr, warmup_updates)


def warmup_stable_decay(
    lr: float,
    warmup_updates: int,
    decay_updates: int,
    total_updates: int,
    end_lr: float,
    shape: DecayShape,
) -> Schedule:
    """Return a constant `lr` that falls to `end_lr` over the last `decay_updates`.

    `one_minus_sqrt` and `linear` are the shapes of Haegele et al., arXiv:2405.18392, section 4.
    """
    power = 0.5 if shape == "one_minus_sqrt" else 1.0

    def after(update: int) -> float:
        progress = _progress(update, total_updates - decay_updates, total_updates)
        return end_lr + (lr - end_lr) * (1.0 - progress**power)

    return warmed_up(after, lr, warmup_updates)


def constant(lr: float, warmup_updates: int) -> Schedule:
    """Return a constant `lr` after the warm-up."""
    return warmed_up(lambda update: lr, lr, warmup_updates)


def _progress(update: int, warmup_updates: int, total_updates: int) -> float:
    """Return the completed share of the decay, clipped to [0, 1]."""
    return min(max(update - warmup_updates, 0) / max(total_updates - warmup_updates, 1), 1.0)
