"""generation.py: cost per token and memory of a search as translations grow.

Shapes: B sentences, K beam, L length of the translations, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import Goal, Section, Spread, table
from plain import beam_search
from profiled import peak_activation_bytes
from turns import take_turns

from ds_seq.models.packing import pack_weights
from ds_seq.runs.open import load_run

LENGTHS = (32, 64, 128, 256, 512)
BEAM, SENTENCES, SOURCE = 5, 16, 24
MEMORY_GOAL = 1.2
TIME_GOAL = 2.0  # the cost of attention grows with the length, that of everything else does not


@dataclass(frozen=True)
class Growing:
    """Extent of the measurement.

    Attributes:
        run: folder of a trained model.
        threads: number of threads of this process.
        rounds: maximum number of rounds.
        seconds: time after which no round begins, provided there have been two.
    """

    run: Path
    threads: int
    rounds: int
    seconds: float


def length_section(settings: Growing) -> Section:
    """Measure time per token and peak memory of translations that all have length L."""
    torch.set_num_threads(settings.threads)
    model: Any = load_run(settings.run, "best").model
    pack_weights(model)  # like `ds-seq generate`
    generator = torch.Generator().manual_seed(1)
    src = torch.randint(4, 1000, (SENTENCES, SOURCE), generator=generator)
    src[:, -1] = 2
    sides = {str(length): _search(model, src, length) for length in LENGTHS}
    rounds = take_turns(sides, settings.rounds, settings.seconds)
    rows, memory = [], {}
    for length in LENGTHS:
        micros = [1e6 * s / (SENTENCES * length) for s in rounds.seconds(str(length))]
        peak = peak_activation_bytes(sides[str(length)], [])
        memory[length] = peak / _cache_bytes(model, length)
        rows.append(
            [
                str(length),
                Spread.of(micros).text(0),
                f"{peak / 1e6:,.1f}",
                f"{_cache_bytes(model, length) / 1e6:,.1f}",
                f"{memory[length]:.2f}",
            ]
        )
    longest, shortest = str(LENGTHS[-1]), str(LENGTHS[0])
    scale = LENGTHS[0] / LENGTHS[-1]
    cost = Spread.of([scale * ratio for ratio in rounds.ratios(longest, shortest)]).median
    body = (
        f"{table(['tokens', 'us per token', 'peak, MB', 'cache, MB', 'peak to cache'], rows)}\n\n"
        f"Medians (and extremes) of {rounds.count} rounds: {SENTENCES} sentences, beam {BEAM}, "
        f"{settings.threads} threads; every translation ends at the same length. *peak*: most "
        "bytes that torch's allocator held at one time during a search, beyond the model. "
        "*cache*: keys and values of all decoded tokens of all hypotheses, and of the source once "
        "a sentence."
    )
    goals = [
        Goal(f"cost of a token, {longest} tokens to {shortest}", cost, TIME_GOAL, "x", False),
        Goal(
            f"peak memory to the cache's size, {longest} tokens",
            memory[LENGTHS[-1]],
            MEMORY_GOAL,
            "x",
            at_least=False,
        ),
    ]
    return Section("Length", body, goals)


def _search(model: Any, src: torch.Tensor, length: int) -> Callable[[], None]:
    search = beam_search(
        beam=BEAM,
        max_len_a=0,
        max_len_b=length,
        min_len=length,
        max_positions=LENGTHS[-1] + 1,
    )

    def translate() -> None:
        found = search.search(model, src, torch.ones_like(src, dtype=torch.bool))
        assert all(len(one[0].tokens) == length for one in found)

    return translate


def _cache_bytes(model: Any, length: int) -> int:
    """Bytes of K rows of keys and values per sentence in each layer, and one of the source."""
    table = model.target_embedding.weight
    layers = len(model.decoder.layers)
    columns = BEAM * (length + 1) + SOURCE
    return int(2 * table.element_size() * layers * SENTENCES * columns * table.size(1))
