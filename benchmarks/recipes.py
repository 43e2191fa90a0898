#!/usr/bin/env python3
"""Train recipes of `ds-seq recipes` on one thread, as their files say, and report what it took.

    python benchmarks/recipes.py tiny_dense lm_tiny --raw data/quickstart/raw --out runs/recipes

Each recipe runs its own steps in `--out`, whose `data/quickstart/raw` is the folder of `--raw`
(`prepare_data/fetch_sample.py --out` fetches it). A step that has succeeded is not repeated. `--set
KEY=VALUE` changes a setting where a step prepares or trains, such as `--set train.max_updates=20`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import finish, table

from ds_seq.config.load import load_experiment
from ds_seq.config.shipped import Recipe, configs_folder, recipes

EXAMPLE = Path("data/quickstart/raw")
CHANGEABLE = re.compile(r"(ds-seq|torchrun .*-m ds_seq) (prepare|train) ")
TRAINING = re.compile(r"(ds-seq|torchrun .*-m ds_seq) train ")


class Outcome(NamedTuple):
    """What a recipe took, and what came of it.

    Attributes:
        updates: number of updates.
        minutes: processor minutes of the training, validations included.
        memory: the most memory of the process in GB.
        score: best score of the validation, with its name; empty if there was no validation.
    """

    updates: int
    minutes: float
    memory: float
    score: str


def commands_of(recipe: Recipe, changes: Sequence[str]) -> list[str]:
    """Return the steps of a recipe, with changed settings where a step prepares or trains."""
    added = "".join(f" {shlex.quote(change)}" for change in changes)
    return [step + added if CHANGEABLE.match(step) else step for step in recipe.steps]


def run_step(command: str, out: Path, journal: Path) -> float:
    """Run a step in a shell unless the journal has it; return its processor minutes.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    done: dict[str, float] = json.loads(journal.read_text()) if journal.exists() else {}
    if command not in done:
        print(f"$ {command}", file=sys.stderr, flush=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        places = {
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        subprocess.run(["bash", "-euc", command], cwd=out, check=True, env={**os.environ, **places})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        done[command] = took / 60
        journal.write_text(json.dumps(done, indent=1))
    return done[command]


def outcome(run: Path, minutes: float) -> Outcome:
    """Read the log of a finished training."""
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    updates = max(line["update"] for line in lines)
    memory = max(line.get("memory/host") or 0.0 for line in lines) * 2**30 / 1e9
    valid = [line for line in lines if line["kind"] == "valid" and "best_by" in line]
    if not valid:
        return Outcome(updates, minutes, memory, "")
    by, scores = valid[-1]["best_by"], [line["best_score"] for line in valid]
    best = min(scores) if by in ("loss", "perplexity") else max(scores)
    return Outcome(updates, minutes, memory, f"{by} {best:.2f}")


def train(recipe: Recipe, out: Path, changes: Sequence[str]) -> Outcome:
    """Run all steps of a recipe."""
    minutes = 0.0
    for command in commands_of(recipe, changes):
        took = run_step(command, out, out / "steps.json")
        minutes += took if TRAINING.match(command) else 0.0
    config = load_experiment(recipe.path)
    return outcome(out / (config.run_dir or f"runs/{config.name}"), minutes)


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="+", metavar="RECIPE")
    parser.add_argument("--raw", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--record", action="store_true", help="append the table to RESULTS.md")
    arguments = parser.parse_args()
    known = {recipe.name: recipe for recipe in recipes()}
    out = arguments.out.resolve()
    (out / EXAMPLE.parent).mkdir(parents=True, exist_ok=True)
    for link, target in ((EXAMPLE, arguments.raw), (Path("configs"), configs_folder())):
        if not (out / link).exists():
            (out / link).symlink_to(target.resolve(), target_is_directory=True)
    rows = []
    for name in arguments.names:
        found = train(known[name], out, arguments.set)
        rows.append(
            [name, f"{found.updates:,}", f"{found.minutes:.1f}", f"{found.memory:.1f}", found.score]
        )
        print(table(HEADER, rows[-1:]), file=sys.stderr, flush=True)
    return finish("Recipes", table(HEADER, rows), [], arguments.record)


HEADER = ("recipe", "updates", "processor minutes", "memory, GB", "best of the validations")

if __name__ == "__main__":
    sys.exit(main())
