"""distillation.py: cost of an update with a live teacher and with a cache."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Goal, Section, Spread, table
from distillation_quality import (
    SCRATCH,
    TOP_K,
    Quality,
    cached_section,
    live_section,
    make_cache,
    student_experiment,
    train_teacher,
)
from experiments import NEVER, write_experiment
from worker import Block, Worker

HERE = Path(__file__).resolve().parent
PLAIN, IDLE = "plain", "plain, with an unused teacher"
LIVE, CACHED = "live teacher", f"cached teacher, top {TOP_K}"
_IDLE_TEACHER = "distillation_idle:IdleTeacher"
ALLOWED = 15.0  # percent of plain training


@dataclass(frozen=True)
class Cost:
    """Settings of the measurement.

    Attributes:
        quality: settings that define teacher and student.
        rounds: maximum number of turns of each system.
        block: updates per turn.
        seconds: time after which no round begins, provided there have been two.
    """

    quality: Quality
    rounds: int
    block: int
    seconds: float


def cost_section(cost: Cost) -> Section:
    """Compare the time per update with plain training, round by round."""
    quality = cost.quality
    train_teacher(quality)
    make_cache(quality)
    rounds = _measure(cost, _criterions(quality))
    times = {name: [r[name].seconds for r in rounds] for name in rounds[0]}
    plain = times[PLAIN]
    rows = []
    for name, seconds in times.items():
        to_plain = [100 * (mine / base - 1) for mine, base in zip(seconds, plain, strict=True)]
        rows.append(
            [
                name,
                Spread.of([1000 * s / cost.block for s in seconds]).text(0),
                Spread.of([r[name].speed for r in rounds]).text(0),
                Spread.of(to_plain).text(1),
            ]
        )
    header = ["system", "ms per update", "target tokens/s", "extra time over plain, %"]
    blocks = [block for turn in rounds for block in turn.values()]
    wall = quality.threads * sum(block.seconds for block in blocks)
    remarks = (
        f"Medians (and extremes) of {len(rounds)} rounds of {cost.block} updates: `ds-seq train`, "
        f"teacher and student as above, whole distributions from the live teacher, "
        f"{quality.threads} threads, busy "
        f"{sum(block.cpu_seconds for block in blocks) / wall:.0%} of the time. *{IDLE}*: the "
        "teacher's forward on every batch, its output discarded; what a live teacher takes "
        "beyond that is the cost of the loss itself."
    )
    loss_alone = _share(times[LIVE], times[IDLE], plain)
    cached = _share(times[CACHED], plain, plain)
    goals = [
        Goal("live teacher, beyond its forward", loss_alone, ALLOWED, "% of plain", at_least=False),
        Goal("cached teacher, beyond plain", cached, ALLOWED, "% of plain", at_least=False),
    ]
    return Section("Time per update", f"{table(header, rows)}\n\n{remarks}", goals)


def _share(mine: Sequence[float], less: Sequence[float], plain: Sequence[float]) -> float:
    shares = [100 * (m - s) / p for m, s, p in zip(mine, less, plain, strict=True)]
    return Spread.of(shares).median


def _criterions(quality: Quality) -> Mapping[str, dict[str, Any]]:
    smoothed = {"label_smoothing": 0.1}
    return {
        PLAIN: {"name": "cross_entropy", **smoothed},
        IDLE: {
            "name": _IDLE_TEACHER,
            "options": {"teacher": str(quality.teacher), **smoothed},
        },
        LIVE: live_section(quality),
        CACHED: cached_section(quality),
    }


def _measure(cost: Cost, criterions: Mapping[str, dict[str, Any]]) -> list[Mapping[str, Block]]:
    """Let all systems take turns."""
    folder = cost.quality.folder / "cost"
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        workers = []
        for number, (name, criterion) in enumerate(criterions.items()):
            experiment = student_experiment(cost.quality, SCRATCH, seed=1)
            experiment |= {
                "name": f"cost{number}",
                "run_dir": str(folder / str(number)),
                "criterion": criterion,
            }
            experiment["train"] |= {"max_updates": NEVER}
            experiment["scheduler"] = {"name": "inverse_sqrt", "warmup_updates": 100}
            path = folder / f"{number}.yaml"
            write_experiment(experiment, path)
            command = [sys.executable, str(HERE / "ds_seq_side.py"), str(path)]
            command += ["--trust", _IDLE_TEACHER]
            threads = {"OMP_NUM_THREADS": str(cost.quality.threads), "PYTHONPATH": str(HERE.parent)}
            log = folder / f"{number}.log"
            workers.append(stack.enter_context(Worker(name, command, log, threads)))
        for worker in workers:
            worker.run(max(cost.block // 2, 2))
        rounds: list[Mapping[str, Block]] = []
        start = time.monotonic()
        while len(rounds) < cost.rounds and (
            len(rounds) < 2 or time.monotonic() - start < cost.seconds
        ):
            first = len(rounds) % len(workers)
            order = workers[first:] + workers[:first]
            rounds.append({worker.name: worker.run(cost.block) for worker in order})
            _progress(rounds)
    return [{worker.name: turn[worker.name] for worker in workers} for turn in rounds]


def _progress(rounds: Sequence[Mapping[str, Block]]) -> None:
    last = {name: block.seconds for name, block in rounds[-1].items()}
    plain = last.get(PLAIN, math.nan)
    shown = ", ".join(f"{name} {seconds / plain:.2f}" for name, seconds in last.items())
    print(f"round {len(rounds)}: {shown}", file=sys.stderr, flush=True)
