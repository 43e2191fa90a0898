#!/usr/bin/env python3
"""Gain and cost of distillation: students with and without a teacher; time per update.

`quality` trains one teacher and, with several seeds each, the same small student in five ways.
Every run is a `ds-seq` command; finished runs are not trained again, so the script resumes after an
interruption. `cost` lets plain training, training with a live teacher and training
from a cache take turns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common import Goal, add_common_arguments, finish
from curve_plot import load_matplotlib
from distillation_cost import Cost, cost_section
from distillation_quality import Quality, plot_quality, quality_section, train_all
from experiments import CACHE, fetch_text

from ds_seq.errors import run_command

PLOTS = Path(__file__).resolve().parent / "plots"
NAME = "distillation"
SECTIONS = ("quality", "cost")
QUICK = {"teacher_updates": 60, "updates": 40, "seeds": [1, 2], "rounds": 3, "block": 4}


def main(argv: Sequence[str]) -> int:
    """Run the requested sections; return the exit status."""
    arguments = _parse(argv)
    text = fetch_text(arguments.cache, arguments.tsv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    quality = Quality(
        text=text,
        folder=arguments.out.resolve(),
        teacher_updates=arguments.teacher_updates,
        updates=arguments.updates,
        seeds=tuple(arguments.seeds),
        jobs=arguments.jobs,
        threads=arguments.threads,
    )
    bodies: list[str] = []
    goals: list[Goal] = []
    if "quality" in arguments.only:
        if arguments.plot:
            load_matplotlib()  # fail now rather than an hour later
        results = train_all(quality)
        section = quality_section(quality, results)
        body = f"### {section.title}\n\n{section.body}"
        if arguments.plot:
            picture = (PLOTS if arguments.record else arguments.out) / f"{NAME}.png"
            plot_quality(results, picture)
            print(picture, file=sys.stderr)
            if arguments.record:
                body += f"\n\n![BLEU of teacher and students]({PLOTS.name}/{NAME}.png)"
        bodies.append(body)
        goals += section.goals
    if "cost" in arguments.only:
        cost = Cost(quality, arguments.rounds, arguments.block, arguments.minutes * 60)
        section = cost_section(cost)
        bodies.append(f"### {section.title}\n\n{section.body}")
        goals += section.goals
    return finish("Distillation", "\n\n".join(bodies), goals, arguments.record)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_common_arguments(parser)
    add = parser.add_argument
    add("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of every kind of student")
    add("--teacher-updates", type=int, default=3000, metavar="N", help="updates of the teacher")
    add("--updates", type=int, default=800, metavar="N", help="updates of each student")
    add("--jobs", type=int, default=2, metavar="N", help="students that train at the same time")
    add("--threads", type=int, default=2, metavar="N", help="threads of a process that runs alone")
    add("--rounds", type=int, default=10, metavar="N", help="rounds of the section cost")
    add("--block", type=int, default=10, metavar="N", help="updates per turn of that section")
    add("--minutes", type=float, default=10.0, help="approximate time for that section")
    add("--tsv", type=Path, metavar="FILE", help="source<TAB>target lines instead of fetched text")
    add("--cache", type=Path, default=CACHE, help="folder for the text")
    add("--out", type=Path, default=Path("runs") / NAME, help="folder for all runs and the plot")
    add("--no-plot", dest="plot", action="store_false", help="draw no plot; needs no matplotlib")
    if "--quick" in argv:
        parser.set_defaults(out=Path("runs") / f"{NAME}-quick", **QUICK)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(run_command(main, sys.argv[1:]))
