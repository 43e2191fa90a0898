#!/usr/bin/env python3
"""Speed of two checkouts of ds_seq in turns: training, dense and with experts, and translation.

    python benchmarks/compare_trees.py OLD NEW [--rounds 9]

Each side runs the code of its own checkout. Training is its `benchmarks/ds_seq_side.py`, which is
`ds-seq train` paused between blocks of updates. Translation is its `ds-seq generate`, which
reports a speed without start-up. OLD prepares the data and trains the model once; the text is
synthetic. Ratios are taken within a round, and the order alternates from round to round.

The script also reports whether both compute the same losses and translations.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import Spread, table
from worker import Block, Worker

SIDES = ("old", "new")
MODELS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "moe": {"num_experts": 4, "top_k": 1, "placement": "both", "every": 2},
}
_NEVER = 10**9
_SPEED = re.compile(r"\(([\d,.]+) sentences/s")
_CROSS_ENTROPY = {"name": "cross_entropy", "label_smoothing": 0.1}
_WITH_GATES = {
    "name": "model_and_base",
    "base": _CROSS_ENTROPY,
    "loss_weights": {"load_balance": 0.01, "router_z": 0.001},
}


@dataclass
class Comparison:
    """Results of both sides in each round.

    Attributes:
        name: name of the work.
        unit: unit of the speeds.
        speeds: wall-clock speed by side, round by round.
        cpu_speeds: speed per second of processor time.
        same: whether both results are the same.
    """

    name: str
    unit: str
    speeds: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    cpu_speeds: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    same: bool = True

    def row(self) -> list[str]:
        """Return the cells of the table."""
        old, new = (Spread.of(self.speeds[side]) for side in SIDES)
        by_round = _ratios(self.speeds)
        cells = [f"{self.name}, {self.unit}", old.text(1), new.text(1)]
        cells += [f"{new.median / old.median:.3f}", Spread.of(by_round).text(3)]
        by_cpu = Spread.of(self.ratios_of_processor_time())
        cells += [f"{_interquartile(by_round):.3f}", by_cpu.text(3)]
        return [*cells, "yes" if self.same else "NO"]

    def ratios_of_processor_time(self) -> list[float]:
        """Return the speed of the new side to that of the old one, round by round."""
        return _ratios(self.cpu_speeds)


HEADER = (
    "work",
    "old",
    "new",
    "ratio of medians",
    "new to old per round",
    "interquartile range",
    "by CPU time",
    "same results",
)


def _ratios(speeds: Mapping[str, Sequence[float]]) -> list[float]:
    old, new = (speeds[side] for side in SIDES)
    return [new_speed / old_speed for new_speed, old_speed in zip(new, old, strict=True)]


def _interquartile(values: Sequence[float]) -> float:
    ordered, quarter = sorted(values), len(values) // 4
    return ordered[len(ordered) - 1 - quarter] - ordered[quarter]


def main(argv: Sequence[str]) -> int:
    """Measure and print; return 1 if the results differ."""
    with tempfile.TemporaryDirectory(prefix="ds_seq_trees_") as folder:
        found = compare(parse(argv), Path(folder))
    print(f"\n{table(HEADER, [comparison.row() for comparison in found])}")
    return int(not all(comparison.same for comparison in found))


def compare(arguments: argparse.Namespace, folder: Path) -> list[Comparison]:
    """Measure in turns.

    Args:
        arguments: from `parse`.
        folder: folder for text, shards and runs.
    """
    trees = {"old": arguments.old.resolve(), "new": arguments.new.resolve()}
    found = []
    _write_text(folder, arguments.sentences)
    environments = {side: _environment(trees[side], arguments.threads) for side in SIDES}
    for model in arguments.only:
        if model in MODELS:
            found.append(_compare_training(model, trees, environments, folder, arguments))
        else:
            found.append(_compare_translation(trees, environments, folder, arguments))
    return found


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, help="a checkout of ds_seq")
    parser.add_argument("new", type=Path, help="another one, able to read what the old one writes")
    works = [*MODELS, "translation"]
    parser.add_argument("--only", nargs="+", choices=works, default=works)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--updates", type=int, default=12, help="updates per side and round")
    parser.add_argument("--warmup", type=int, default=20, help="updates before the first round")
    parser.add_argument("--max-tokens", type=int, default=2048, help="tokens per training batch")
    parser.add_argument("--sentences", type=int, default=400, help="sentences translated per round")
    parser.add_argument("--trained", type=int, default=150, help="updates of the translation model")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def _environment(tree: Path, threads: int) -> dict[str, str]:
    """Return the environment that makes a process run the code of a checkout."""
    count = str(threads)
    paths = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return {**paths, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}


def _write_text(folder: Path, num_test: int) -> None:
    """Write text of invented words, and its translation: each word spelled backwards."""
    rng = random.Random(1)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = sorted(
        {"".join(rng.choice(syllables) for _ in range(rng.randint(1, 3))) for _ in range(900)}
    )
    for split, count in (("train", 12_000), ("test", num_test)):
        lines = [
            [words[int(len(words) * rng.random() ** 2)] for _ in range(rng.randint(4, 30))]
            for _ in range(count)
        ]
        source = "".join(" ".join(line) + "\n" for line in lines)
        target = "".join(" ".join(word[::-1] for word in line) + "\n" for line in lines)
        (folder / f"{split}.en").write_text(source, encoding="utf-8")
        (folder / f"{split}.de").write_text(target, encoding="utf-8")


def _write_experiment(folder: Path, model: str, side: str, arguments: argparse.Namespace) -> Path:
    """Write the experiment of a side as JSON, which is YAML, with keys that all versions have."""
    moe = MODELS[model]
    path = folder / f"{model}-{side}.yaml"
    experiment = {
        "name": path.stem,
        "run_dir": str(folder / path.stem),
        "data": {
            "source_lang": "en",
            "target_lang": "de",
            "dir": str(folder / "shards"),
            "raw": {
                "train": {"source": str(folder / "train.en"), "target": str(folder / "train.de")}
            },
            "vocab": {"size": 1000},
        },
        "model": {
            "d_model": 128,
            "ffn_dim": 512,
            "num_heads": 4,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "dropout": 0.1,
            **({} if moe is None else {"moe": moe}),
        },
        "criterion": _CROSS_ENTROPY if moe is None else _WITH_GATES,
        "optimizer": {"name": "adam", "lr": 2e-3, "betas": [0.9, 0.98]},
        "scheduler": {"name": "inverse_sqrt", "warmup_updates": 100},
        "train": {
            "max_tokens": arguments.max_tokens,
            "max_updates": _NEVER,
            "validate_every": None,
            "save_every": _NEVER,
            "sanity_validation_batches": 0,
            "tensorboard": False,
        },
    }
    path.write_text(json.dumps(experiment, indent=1), encoding="utf-8")
    return path


def _command(
    environment: Mapping[str, str], *arguments: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run `ds-seq ARGUMENTS`; return the process and its processor time, including start-up.

    Raises:
        SystemExit: the command failed.
    """
    before = os.times()
    process = subprocess.run(
        [sys.executable, "-m", "ds_seq", *arguments],
        env={**os.environ, **environment},
        cwd=environment["PYTHONPATH"],
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise SystemExit(f"ds-seq {' '.join(arguments)} failed:\n{process.stderr[-3000:]}")
    after = os.times()
    used = after.children_user + after.children_system
    return process, used - before.children_user - before.children_system


def _order(number: int) -> tuple[str, ...]:
    """Return the order of the sides in a round."""
    return SIDES if number % 2 == 0 else SIDES[::-1]


def _start(
    stack: contextlib.ExitStack,
    model: str,
    side: str,
    tree: Path,
    environment: Mapping[str, str],
    path: Path,
) -> Worker:
    command = [sys.executable, str(tree / "benchmarks" / "ds_seq_side.py"), str(path)]
    log = path.with_suffix(".log")
    return stack.enter_context(Worker(f"{model}, {side}", command, log, environment))


def _compare_training(
    model: str,
    trees: Mapping[str, Path],
    environments: Mapping[str, dict[str, str]],
    folder: Path,
    arguments: argparse.Namespace,
) -> Comparison:
    """Time blocks of updates on the same batches."""
    paths = {side: _write_experiment(folder, model, side, arguments) for side in SIDES}
    _command(environments["old"], "prepare", str(paths["old"]))
    comparison = Comparison(f"training, {model}", "target tokens/s")
    with contextlib.ExitStack() as stack:
        workers = {
            side: _start(stack, model, side, trees[side], environments[side], paths[side])
            for side in SIDES
        }
        for worker in workers.values():
            worker.run(arguments.warmup)
        for number in range(arguments.rounds):
            blocks = {side: workers[side].run(arguments.updates) for side in _order(number)}
            _add_blocks(comparison, blocks)
    return comparison


def _add_blocks(comparison: Comparison, blocks: Mapping[str, Block]) -> None:
    for side, block in blocks.items():
        comparison.speeds[side].append(block.speed)
        comparison.cpu_speeds[side].append(block.cpu_speed)
    old, new = blocks["old"], blocks["new"]
    same = old.target_tokens == new.target_tokens and old.loss == new.loss
    comparison.same = comparison.same and same
    ratio = new.speed / old.speed
    print(
        f"{comparison.name}: {old.speed:,.0f} and {new.speed:,.0f} tokens/s ({ratio:.3f}), "
        f"losses {old.loss:.6f} and {new.loss:.6f}",
        file=sys.stderr,
        flush=True,
    )


def _compare_translation(
    trees: Mapping[str, Path],
    environments: Mapping[str, dict[str, str]],
    folder: Path,
    arguments: argparse.Namespace,
) -> Comparison:
    """Translate the test sentences with beam 5 and a model that OLD has trained briefly."""
    path = _write_experiment(folder, "dense", "translating", arguments)
    _command(environments["old"], "prepare", str(path))
    with contextlib.ExitStack() as stack:
        worker = _start(stack, "dense", "old", trees["old"], environments["old"], path)
        worker.run(arguments.trained)
        worker.save()
    run, source = folder / path.stem, folder / "test.en"
    comparison = Comparison("translation", "sentences/s")
    for number in range(arguments.rounds):
        outputs = {}
        for side in _order(number):
            output = folder / f"{side}-{number}.out"
            options = ["--input", str(source), "--output", str(output), "--beam", "5"]
            options += ["--checkpoint", "last"]
            process, cpu_seconds = _command(environments[side], "generate", str(run), *options)
            said = _SPEED.search(process.stderr)
            assert said is not None, f"no speed in:\n{process.stderr}"
            comparison.speeds[side].append(float(said[1].replace(",", "")))
            comparison.cpu_speeds[side].append(arguments.sentences / cpu_seconds)
            outputs[side] = output.read_text(encoding="utf-8")
        comparison.same = comparison.same and outputs["old"] == outputs["new"]
        old, new = (comparison.speeds[side][-1] for side in SIDES)
        text = f"translation: {old:,.1f} and {new:,.1f} sentences/s ({new / old:.3f})"
        print(text, file=sys.stderr, flush=True)
    return comparison


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
