"""Which ranks end when one is killed or stopped, how soon, and how soon a supervised run goes on.

    python benchmarks/survival_hangs.py [--limit 5] [--quick] [--record]

Two ranks of each command on a CPU, without a launcher (nobody ends the other rank) and, for
training, under each launcher. SIGKILL or SIGSTOP hits rank 0 or rank 1 while both are at work. The
other rank must end within the limit, with an exit code other than 0, and say where it was.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

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
from benchmarks.hang_cases import (
    COMMANDS,
    LAUNCHERS,
    Lab,
    Outcome,
    Restart,
    measure,
    measure_restart,
)

_SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
_PARTS = ("ends", "restarts")
_SLACK = 1.0  # seconds: this machine is shared


def main(argv: Sequence[str]) -> int:
    """Measure all cases; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=5.0, help="hang_seconds of the runs")
    parser.add_argument("--only", nargs="*", default=list(COMMANDS), choices=COMMANDS)
    parser.add_argument("--launchers", nargs="*", default=list(LAUNCHERS), choices=list(LAUNCHERS))
    parser.add_argument("--parts", nargs="*", default=list(_PARTS), choices=_PARTS)
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), args.limit)
        lab.make()
        ends, goals = _ends(lab, args) if "ends" in args.parts else ("", [])
        again = _restarts(lab, args) if "restarts" in args.parts else ""
    body = f"{machine()}; `{command_line()}`\n\n{ends}\n\n{again}"
    return finish("Ranks that are killed or stopped", body, goals, args.record)


def _ends(lab: Lab, args: argparse.Namespace) -> tuple[str, list[Goal]]:
    cases = [(command, "none") for command in args.only if "none" in args.launchers]
    cases += [("train", launcher) for launcher in args.launchers if launcher != "none"]
    ranks = (1,) if args.quick else (0, 1)
    rows, good, count = [], 0, 0
    for command, launcher in cases:
        for number in _SIGNALS:
            outcomes = [measure(lab, command, launcher, rank, number) for rank in ranks]
            for outcome in outcomes:
                print(command, launcher, number.name, outcome, flush=True)
            good += sum(_is_good(outcome, lab.limit, launcher) for outcome in outcomes)
            count += len(outcomes)
            rows.append([f"{command}, {launcher}, {number.name}", *map(_shown, outcomes)])
    hit = [f"rank {rank} is hit" for rank in ranks]
    text = f"Seconds until the other rank ends, limit {lab.limit:g} s; its exit code.\n\n"
    text += table(["command, launcher, signal", *hit], rows)
    return text, [Goal("ends within the limit, with its stack, of all", good, count)]


def _is_good(outcome: Outcome | str, limit: float, launcher: str) -> bool:
    if isinstance(outcome, str) or outcome.seconds is None or outcome.seconds > limit + _SLACK:
        return False
    if launcher != "none" and outcome.code is None:  # the launcher was faster
        return True
    return outcome.code not in (0, None) and outcome.is_explained


def _shown(outcome: Outcome | str) -> str:
    if isinstance(outcome, str):
        return "not run"
    if outcome.seconds is None:
        return "runs on"
    code = "by the launcher" if outcome.code is None else f"code {outcome.code}"
    return f"{outcome.seconds:.1f} s, {code}"


def _restarts(lab: Lab, args: argparse.Namespace) -> str:
    rows = []
    for launcher in [name for name in args.launchers if name != "none"]:
        for number in _SIGNALS:
            found = [measure_restart(lab, launcher, rank, number) for rank in (0, 1)[args.quick :]]
            print(launcher, number.name, found, flush=True)
            good = [each for each in found if isinstance(each, Restart)]
            if not good:
                rows.append([f"{launcher}, {number.name}", f"0 of {len(found)}", "", "", ""])
                continue
            rows.append(
                [
                    f"{launcher}, {number.name}",
                    f"{len(good)} of {len(found)}",
                    Spread.of([each.noticed for each in good]).text(1),
                    Spread.of([each.first for each in good]).text(1),
                    Spread.of([each.repeated for each in good]).text(),
                ]
            )
    head = ["launcher, signal", "went on", "restarted after s", "new update after s", "run again"]
    return "A supervised training, one rank hit; seconds from the hit.\n\n" + table(head, rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
