#!/usr/bin/env python3
"""Memory of a training on a CPU as it goes on, with and without our limit of prepared kernels.

Two processes train the same model on the same batches and take turns. Hardly any two batches have
the same shapes, so oneDNN prepares new kernels in every update. One process keeps as many of them
as torch and oneDNN do by default, the other as many as `ds-seq train` lets them.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from common import Goal, Spread, add_common_arguments, finish, table
from experiments import CACHE, fetch_text, write_experiment
from throughput_setup import EXPERTS, MODEL, recipe
from worker import Block, Worker

HERE = Path(__file__).resolve().parent
OURS, THEIRS = "as ds-seq trains", "without a limit"
DEFAULTS = {"LRU_CACHE_CAPACITY": "1024", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}
GROWTH = 1.3


class State(NamedTuple):
    """A process after some updates."""

    block: Block
    """Cost of the updates since the last state."""
    resident_bytes: int


def main(argv: Sequence[str]) -> int:
    """Measure, print, record; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--updates", type=int, nargs="+", default=[10, 60, 250, 1000], metavar="N")
    parser.add_argument("--max-tokens", type=int, default=8192)
    parser.add_argument("--d-model", type=int, default=96)
    parser.add_argument("--experts", action="store_true", help="8 experts in every second layer")
    parser.add_argument("--tsv", type=Path, metavar="FILE", help="source<TAB>target lines")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of text and vocabulary")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.updates, arguments.max_tokens = [5, 30, 60], 2048
    with tempfile.TemporaryDirectory(prefix="ds_seq_memory_") as folder:
        states = _measure(arguments, Path(folder))
    return _report(states, arguments)


def _measure(arguments: argparse.Namespace, folder: Path) -> dict[str, list[State]]:
    width = arguments.d_model
    shared = replace(
        recipe(fetch_text(arguments.cache, arguments.tsv), arguments.max_tokens),
        model={**MODEL, "d_model": width, "ffn_dim": 4 * width},
    )
    states: dict[str, list[State]] = {OURS: [], THEIRS: []}
    with contextlib.ExitStack() as stack:
        workers = []
        for name, variables in ((OURS, {}), (THEIRS, DEFAULTS)):
            path = folder / f"{name.partition(' ')[0]}.yaml"
            experiment = shared.experiment(
                path.with_suffix(""), EXPERTS if arguments.experts else None
            )
            write_experiment(experiment, path)
            command = [sys.executable, str(HERE / "ds_seq_side.py"), str(path)]
            environment = {"OMP_NUM_THREADS": "1", **variables}
            workers.append(
                stack.enter_context(Worker(name, command, path.with_suffix(".log"), environment))
            )
        done = 0
        for updates in arguments.updates:
            for worker in workers:
                block = worker.run(updates - done)
                states[worker.name].append(State(block, worker.resident_bytes))
                print(f"{updates} updates, {worker.name}: {block}", file=sys.stderr, flush=True)
            done = updates
    return states


def _report(states: dict[str, list[State]], arguments: argparse.Namespace) -> int:
    header = ["memory, MB, after updates", *(f"{updates:,}" for updates in arguments.updates)]
    header += ["tokens per CPU second", "to no limit"]
    speeds = {name: [each.block.cpu_speed for each in found] for name, found in states.items()}
    ratios = {
        name: [mine / base for mine, base in zip(found, speeds[THEIRS], strict=True)]
        for name, found in speeds.items()
    }
    rows = [
        [
            name,
            *(f"{each.resident_bytes / 1e6:,.0f}" for each in found),
            Spread.of(speeds[name][1:]).text(),
            Spread.of(ratios[name][1:]).text(2),
        ]
        for name, found in states.items()
    ]
    kind = "8 experts in every second layer" if arguments.experts else "dense"
    body = (
        f"{table(header, rows)}\n\n3+3 layers of width {arguments.d_model}, {kind}, one thread, "
        f"batches of at most {arguments.max_tokens:,} tokens. Speeds are medians (and extremes) "
        "between the columns; the first block is left out."
    )
    first, last = states[OURS][1].resident_bytes, states[OURS][-1].resident_bytes
    name = f"memory after {arguments.updates[-1]:,} updates to {arguments.updates[1]:,}"
    goals = [Goal(name, last / first, GROWTH, "x", at_least=False)]
    return finish("Memory of a training on a CPU", body, goals, arguments.record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
