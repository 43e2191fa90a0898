"""Kill trainings, send them signals, damage what they have written; count what is survived.

Every trial is a real run of `ds-seq train` in forked gloo ranks, which share nothing but the
imports. Each trial appends a line to a JSONL file, and a script that is started again goes on after
the last line::

    python benchmarks/survival.py --out /tmp/survival --record
    python benchmarks/survival.py --out /tmp/survival --only kills --trials 20
    python benchmarks/survival.py --out /tmp/survival --report       # the tables, without trials
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import add_common_arguments, finish
from benchmarks.survival_report import goals, report
from benchmarks.survival_rounding import rounding
from benchmarks.survival_trials import SECTIONS, Bench
from ds_seq.errors import run_command
from ds_seq.files import LOCK_FILE, Lock

Row = dict[str, Any]
ALL_SECTIONS = {**SECTIONS, "rounding": rounding}


def main(argv: Sequence[str]) -> int:
    """Run the trials that are missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of runs and results")
    parser.add_argument("--only", nargs="+", choices=ALL_SECTIONS, default=list(ALL_SECTIONS))
    parser.add_argument("--trials", type=int, default=100, help="kills, and signals")
    parser.add_argument("--report", action="store_true", help="no further trials")
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    journal = args.out / "survival.jsonl"
    if not args.report:
        # trials of two processes would delete each other's runs
        with Lock(args.out / LOCK_FILE, args.out, "give another --out"):
            bench = Bench(args.out.resolve(), 6 if args.quick else args.trials)
            for section in args.only:
                _complete(ALL_SECTIONS[section], section, bench, journal)
    rows = _read(journal)
    return finish("Survival", report(rows), goals(rows), args.record)


def _complete(
    trial: Callable[[Bench, int], Row | None], section: str, bench: Bench, journal: Path
) -> None:
    """Run the trials of a section that the journal does not hold yet."""
    done = sum(row["section"] == section for row in _read(journal))
    while (row := trial(bench, done)) is not None:
        with journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"section": section, "trial": done, **row}) + "\n")
        print(section, done, row, flush=True)
        done += 1


def _read(journal: Path) -> list[Row]:
    if not journal.exists():
        return []
    return [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
