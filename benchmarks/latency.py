#!/usr/bin/env python3
"""Latency of ds_seq, CTranslate2 and fairseq with the same weights, one sentence at a time.

The systems run in separate processes and take turns sentence by sentence, so other load on the
machine affects all of them. The 50th and 95th percentiles are over sentences; of a sentence, the
fastest of several rounds counts. With one thread, processor time is listed, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import Goal, Section, add_common_arguments, finish, table
from experiments import CACHE
from fairseq_venv import make_fairseq_venv
from generation import BEAM, CTRANSLATE2, FAIRSEQ, HERE, OURS, job_of, text_of
from generation_models import small_run
from worker import Block, Worker

from ds_seq.errors import run_command
from ds_seq.runs.open import load_run

GOAL = 1.0


def main(argv: Sequence[str]) -> int:
    """Measure, print, record; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--systems", nargs="+", default=[OURS, CTRANSLATE2, FAIRSEQ])
    parser.add_argument("--tsv", type=Path, metavar="FILE", help="text instead of fetched text")
    parser.add_argument("--cache", type=Path, default=CACHE, help="for text, models and fairseq")
    arguments = parser.parse_args(argv)
    path = small_run(arguments.cache, arguments.tsv)
    count, rounds = (20, 2) if arguments.quick else (100, 5)
    with tempfile.TemporaryDirectory(prefix="ds_seq_latency_") as folder:
        run = load_run(path, "best")
        sources, _ = text_of(run, count)
        job = job_of(1, path, run, sources, Path(folder))
        sections = [
            _measured(arguments, threads, rounds, job, Path(folder))
            for threads in arguments.threads
        ]
    body = "\n\n".join(f"### {section.title}\n\n{section.body}" for section in sections)
    goals = [goal for section in sections for goal in section.goals]
    return finish("Latency of one sentence", body, goals, arguments.record)


def _measured(
    arguments: argparse.Namespace, threads: int, rounds: int, job: dict[str, Any], folder: Path
) -> Section:
    """Let all systems take turns with this number of threads."""
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # fairseq 0.12 predates this check
    }
    count = len(job["sources"])
    with contextlib.ExitStack() as stack:
        workers = []
        for name in arguments.systems:
            python = sys.executable
            if name == FAIRSEQ:
                python = str(make_fairseq_venv(arguments.cache / "fairseq-venv"))
            own = {"system": name, "int8": False, "threads": threads, "one_by_one": True}
            path = folder / f"{name}-{threads}.json"
            path.write_text(json.dumps(job | own), encoding="utf-8")
            command = [python, str(HERE / "generation_sides.py"), str(path)]
            worker = Worker(name, command, path.with_suffix(".log"), environment)
            workers.append(stack.enter_context(worker))
        blocks: dict[str, list[list[Block]]] = {worker.name: [] for worker in workers}
        for _ in range(rounds):
            for sentence in range(count):
                for worker in workers:
                    if sentence == 0:
                        blocks[worker.name].append([])
                    blocks[worker.name][-1].append(worker.run(sentence))
    rows, halves = [], {}
    for name, every in blocks.items():
        walls = [min(block.seconds for block in turn) for turn in zip(*every, strict=True)]
        spent = [min(block.cpu_seconds for block in turn) for turn in zip(*every, strict=True)]
        halves[name] = statistics.median(spent if threads == 1 else walls)
        cells = [f"{1e3 * _percentile(times, p):.2f}" for times in (walls, spent) for p in (50, 95)]
        rows.append([name, *cells])
    header = ["system", "p50, ms", "p95, ms", "p50, ms of processor time", "p95"]
    body = (
        f"{table(header, rows)}\n\n{count} sentences, beam {BEAM}, the fastest of {rounds} rounds "
        "for each sentence."
    )
    goals = [
        Goal(f"{to} to {OURS}, p50, {threads} threads", halves[to] / halves[OURS], GOAL, "x")
        for to in halves
        if to != OURS
    ]
    return Section(f"{threads} threads", body, goals)


def _percentile(times: Sequence[float], percent: int) -> float:
    """Return the smallest time that this percentage of the times does not exceed."""
    return sorted(times)[math.ceil(len(times) * percent / 100) - 1]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
