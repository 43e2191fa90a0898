"""Cost of steps along long outputs: time, and what a search keeps of each hypothesis.

Every step is taken, and the hypotheses of the beam are reordered after each.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from common import Goal, table
from curve_plot import plot_growth
from torch import Tensor

VOCAB, BEAM, SOURCE = 1000, 4, 24
POSITIONS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
WINDOW = 16  # steps up to a position, of which the median is taken
GROWTH = 1.3  # most that a step of constant cost may take at the last position, to the first


class Step(NamedTuple):
    """A step at a position."""

    milliseconds: float
    """Of all hypotheses of a sentence."""
    bytes: int
    """Held by the cache."""


def held_bytes(cache: object) -> int:
    """Return the bytes of the storages of all tensors that a cache leads to."""
    seen: set[int] = set()
    storages: dict[int, int] = {}
    waiting: list[Any] = [cache]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, (torch.nn.Module, str, bytes, type)):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        else:
            waiting.extend(gc.get_referents(value) if _holds(value) else ())
    return sum(storages.values())


def _holds(value: object) -> bool:
    """Return whether an object is a plain container or one of ours."""
    return isinstance(value, (list, tuple, dict)) or type(value).__module__.startswith("ds_seq")


@torch.inference_mode()
def decoded(model: Any) -> Iterator[tuple[int, Step]]:
    """Yield the positions with the cost of a step there."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(4, VOCAB, (1, SOURCE), generator=generator)
    encoded = model.eval().encode(source, torch.ones_like(source).bool())
    cache = model.start_cache(encoded, BEAM, POSITIONS[-1])
    spent: list[float] = []
    for position in range(1, POSITIONS[-1] + 1):
        rows = torch.randint(0, BEAM, (BEAM,), generator=generator)
        tokens = torch.randint(4, VOCAB, (BEAM,), generator=generator)
        start = time.process_time()
        model.decode_step(tokens, cache)
        cache.reorder(rows)
        spent.append(time.process_time() - start)
        if position in POSITIONS:
            yield position, Step(1e3 * median(spent[-WINDOW:]), held_bytes(cache))


def growth(
    models: Mapping[str, Any], constant: Collection[str], picture: Path
) -> tuple[str, list[Goal]]:
    """Measure models; draw the picture; return the table and the goals.

    Args:
        models: encoder-decoders by name, for `POSITIONS[-1]` tokens of a vocabulary of `VOCAB`.
        constant: names of those whose steps must not grow.
        picture: file to write.
    """
    found = {name: dict(decoded(model)) for name, model in models.items()}
    milliseconds = {
        name: {place: step.milliseconds for place, step in steps.items()}
        for name, steps in found.items()
    }
    megabytes = {
        name: {place: 1e-6 * step.bytes for place, step in steps.items()}
        for name, steps in found.items()
    }
    rows = [
        [
            f"{place:,}",
            *(f"{values[place]:.2f}" for values in milliseconds.values()),
            *(f"{values[place]:.2f}" for values in megabytes.values()),
        ]
        for place in POSITIONS
    ]
    header = ["position", *(f"{name}, ms" for name in found), *(f"{name}, MB" for name in found)]
    goals = []
    for name in (name for name in found if name in constant):
        first, last = found[name][POSITIONS[0]], found[name][POSITIONS[-1]]
        label = f"{name}: position {POSITIONS[-1]:,} to {POSITIONS[0]}"
        ratio = last.milliseconds / first.milliseconds
        goals.append(Goal(f"{label}, time", ratio, GROWTH, "x", at_least=False))
        goals.append(Goal(f"{label}, memory", last.bytes / first.bytes, 1.0, "x", at_least=False))
    ticks = [(each, f"{each:,}") for each in POSITIONS]
    panels = {"ms per step": milliseconds, "MB held": megabytes}
    plot_growth(panels, ticks, "position in the output", picture)
    return table(header, rows), goals
