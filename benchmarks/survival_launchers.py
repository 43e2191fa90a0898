"""Kill launchers, and send them signals, at three moments: what becomes of their ranks?

Each trial is a real command of two ranks under `torchrun`, `deepspeed` (the command, or the process
below it that starts the ranks), `mpirun`, or `srun` on a SLURM that the script starts. Wherever the
launcher passes a signal on, or ends, all processes must end, no checkpoint may be damaged, and at
work a training must have saved its last update, unless the launcher has killed its ranks. A trial
appends a line to a JSONL file, and a script that is started again goes on after the last line::

    python benchmarks/survival_launchers.py --out /tmp/launchers --record
    python benchmarks/survival_launchers.py --out /tmp/launchers --targets torchrun --moments work
    python benchmarks/survival_launchers.py --out /tmp/launchers --report
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.common import (
    Goal,
    Spread,
    add_common_arguments,
    command_line,
    finish,
    machine,
    table,
)
from benchmarks.hang_cases import Lab
from benchmarks.launcher_cases import LIMIT, MOMENTS, TARGETS, facts, measure
from ds_seq.errors import run_command
from ds_seq.files import LOCK_FILE, Lock
from tests.slurm.cluster import cluster, why_not

Row = dict[str, Any]
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_OF_SLURM = ("srun", "slurmstepd")
_HANG = 60.0  # seconds; more than any pause of a busy machine


def main(argv: Sequence[str]) -> int:
    """Run the trials that are missing, and print the table; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of text and results")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--moments", nargs="+", choices=list(MOMENTS), default=list(MOMENTS))
    names = [number.name for number in _SIGNALS]
    parser.add_argument("--signals", nargs="+", choices=names, default=names)
    parser.add_argument("--report", action="store_true", help="no further trials")
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    journal = args.out / "launchers.jsonl"
    if not args.report:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends all runs
        # trials of two processes would delete each other's runs
        with Lock(args.out / LOCK_FILE, args.out, "give another --out"):
            _run(args, journal)
    rows = _read(journal)
    body = f"{machine()}; `{command_line()}`\n\n{report(rows)}"
    return finish("Launchers that are killed or get signals", body, goals(rows), args.record)


def _run(args: argparse.Namespace, journal: Path) -> None:
    """Run the trials that the journal does not hold yet."""
    done = {(row["target"], row["signal"], row["moment"]) for row in _read(journal)}
    lab = Lab(args.out.resolve() / "lab", _HANG)
    if not lab.folder.exists():
        lab.folder.mkdir(parents=True)
        lab.make()
    with ExitStack() as stack:
        if set(args.targets) & set(_OF_SLURM):
            if (reason := why_not()) is not None:
                raise SystemExit(f"no SLURM can be started: {reason}; leave out srun, slurmstepd")
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            slurm = stack.enter_context(cluster(Path(folder)))
            os.environ["SLURM_CONF"] = slurm.environ["SLURM_CONF"]
            stack.callback(os.environ.pop, "SLURM_CONF")
        for case in _cases(args):
            if case in done:
                continue
            target, number, moment = case
            outcome = measure(lab, "train", target, signal.Signals[number], moment)
            if isinstance(outcome, str):
                print(*case, outcome, flush=True)
                continue
            row = {"target": target, "signal": number, "moment": moment, **facts(outcome)}
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(*case, outcome, flush=True)


def _cases(args: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    for target in args.targets:
        for moment in args.moments:
            for number in args.signals:
                yield target, number, moment


def _read(journal: Path) -> list[Row]:
    if not journal.exists():
        return []
    return [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]


def report(rows: Sequence[Row]) -> str:
    """Return the table: a row for each target and signal, a column for each moment."""
    found = {(row["target"], row["signal"], row["moment"]): row for row in rows}
    kinds = dict.fromkeys((row["target"], row["signal"]) for row in rows)
    lines = [(*kind, *(_shown(found.get((*kind, moment))) for moment in MOMENTS)) for kind in kinds]
    head = ("hit", "signal", *(f"{moment}: code, seconds" for moment in MOMENTS))
    ended = [row["seconds"] for row in rows if row["seconds"] is not None]
    seconds = (
        f"Seconds until the last process had ended: {Spread.of(ended).text(1)}." if ended else ""
    )
    return f"{table(head, lines)}\n\n{seconds}"


def _shown(row: Row | None) -> str:
    if row is None:
        return ""
    if row["seconds"] is None:
        return f"{row['left']} run on"
    text = f"{row['code']}, {row['seconds']:.1f} s"
    if row["moment"] == "work":
        text += f", saved {row['saved']} of {row['update']}"
    noise = row["tracebacks"]
    return f"{text}, {noise} tracebacks" if noise else text


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Return the goals: of all trials, and of those at work."""
    count, work = len(rows), [row for row in rows if row["moment"] == "work"]
    ended = sum(row["seconds"] is not None for row in rows)
    sound = sum(row["is_sound"] for row in rows)
    quiet = sum(row["tracebacks"] == 0 for row in rows)
    kept = sum(row["saved"] == row["update"] for row in work)
    return [
        Goal(f"no process left after {LIMIT:g} s, of {count}", ended, count),
        Goal(f"run folder intact and free, of {count}", sound, count),
        Goal(f"no traceback, of {count}", quiet, count),
        Goal(f"hit at work, last update saved, of {len(work)}", kept, len(work)),
    ]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
