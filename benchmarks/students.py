#!/usr/bin/env python3
"""Small students of one teacher by what they take from it: layers, words, states, sentences.

Needs the quick start's run (README.md), whose folder is the working folder of all commands. Every
student has half the decoder of its teacher and is trained for the same number of updates. Finished
runs are not trained again, so the script resumes after an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Goal, Spread, add_common_arguments, finish, table

import ds_seq
from ds_seq.config.load import dump, load_experiment
from ds_seq.errors import UserError, run_command

# distilBART's weights
KD = {"name": "distillation", "kd_weight": 0.8, "ce_weight": 0.2, "temperature": 2.0}
HIDDEN = {"hidden": {"weight": 3.0}}
PROJECTED = {"hidden": {"weight": 3.0, "projection": "learned"}}
NARROW = {"d_model": 96, "ffn_dim": 384, "decoder_layers": 1, "moe": None}
OWN_VOCABULARY = 2000
SENTENCES = 300  # of the validation text, translated


@dataclass(frozen=True)
class Kind:
    """A kind of student.

    Attributes:
        name: what the table calls it.
        base: kind with the same start and data, to which it is compared; itself: none.
        shrunk: whether it starts with layers of the teacher.
        model: changes of the section `model`.
        criterion: section `criterion` without the teacher; None for cross entropy.
        data: data folder, below the folder of the benchmark; None for that of the teacher.
    """

    name: str
    base: str
    shrunk: bool = False
    model: Mapping[str, Any] | None = None
    criterion: Mapping[str, Any] | None = None
    data: str | None = None


KINDS = (
    Kind("layers", "layers", shrunk=True),
    Kind("layers, words", "layers", shrunk=True, criterion=KD),
    Kind("layers, words, hidden states", "layers", shrunk=True, criterion={**KD, **HIDDEN}),
    Kind("narrower", "narrower", model=NARROW),
    Kind("narrower, words", "narrower", model=NARROW, criterion=KD),
    Kind("narrower, words, projected", "narrower", model=NARROW, criterion={**KD, **PROJECTED}),
    Kind("own vocabulary", "own vocabulary", model=NARROW, data="own"),
    Kind("own vocabulary, sentences", "own vocabulary", model=NARROW, data="own-labels"),
)


@dataclass(frozen=True)
class Lab:
    """The runs of one teacher's students.

    Attributes:
        teacher: run folder of the teacher.
        out: folder of the students.
        updates: updates of each.
    """

    teacher: Path
    out: Path
    updates: int

    def bleu(self, kind: Kind, seed: int) -> float:
        """Return the validation BLEU of a student, which is trained unless it is finished."""
        run = self.out / f"{kind.name.replace(', ', '-').replace(' ', '_')}.{seed}.{self.updates}"
        if (found := _last_bleu(run, self.updates)) is None:
            ds_seq.fit(str(self._start(kind)), *self._settings(kind, seed, run), overwrite=True)
            found = _last_bleu(run, self.updates)
            assert found is not None, f"{run}: the last update was not validated"
            print(f"{run.name}: BLEU {found:.2f}", file=sys.stderr, flush=True)
        return found

    def _start(self, kind: Kind) -> Path:
        """Return the experiment that a student's settings change."""
        if not kind.shrunk:
            return self.teacher / "config.yaml"
        student = self.out / "student"
        if not student.exists():
            _run("make-student", self.teacher, "--out", student, "--decoder-layers", 1)
        return student / "config.yaml"

    def _settings(self, kind: Kind, seed: int, run: Path) -> list[str]:
        criterion = {"name": "cross_entropy"}
        if kind.criterion is not None:
            criterion = {**kind.criterion, "teacher": str(self.teacher)}
        if kind.shrunk:
            criterion = {"name": "model_and_base", "base": criterion, **_ROUTER_LOSSES}
        sections = {
            "criterion": criterion,
            "scheduler": {"name": "cosine", "warmup_updates": self.updates // 10, "min_lr": 1e-5},
            "validation": {"metrics": ["bleu"], "best": "bleu", "max_sentences": SENTENCES},
        }
        values = {
            "run_dir": run,
            "optimizer.lr": 1e-3 if kind.shrunk else 5e-3,
            "train.seed": seed,
            "train.max_updates": self.updates,
            "train.validate_every": self.updates,
            "train.expert_parallel": 1,
            "train.tensorboard": "false",
        }
        values |= {f"model.{name}": json.dumps(value) for name, value in (kind.model or {}).items()}
        if kind.data is not None:
            values |= {"data.dir": self._data(kind.data), "data.vocab.size": OWN_VOCABULARY}
        return [f"{key}={json.dumps(value)}" for key, value in sections.items()] + [
            f"{key}={value}" for key, value in values.items()
        ]

    def _data(self, name: str) -> Path:
        """Return shards with a vocabulary of the student's own, or the teacher's labels of them."""
        own, labels = self.out / "own", self.out / "own-labels"
        experiment = self.out / "own.yaml"
        if not experiment.exists():
            sizes = [f"data.dir={own}", f"data.vocab.size={OWN_VOCABULARY}"]
            config = load_experiment(self.teacher / "config.yaml", sizes)
            _run("prepare", self.teacher / "config.yaml", *sizes)
            experiment.write_text(dump(config), encoding="utf-8")
        if name == "own-labels" and not (labels / "train.manifest.json").exists():
            search = ("--student", experiment, "--beam", 1, "--max-tokens", 4096)
            _run("pseudo-label", self.teacher, "--data", own, "--out", labels, *search)
        return self.out / name


_ROUTER_LOSSES = {"loss_weights": {"load_balance": 0.01, "router_z": 0.001}}


def _run(*words: object) -> None:
    # in a process of its own: a command leaves the group of processes that all trainings here share
    if code := subprocess.call([sys.executable, "-m", "ds_seq", *map(str, words)]):
        raise UserError(f"ds-seq {words[0]}: ended with exit code {code}")


def _last_bleu(run: Path, update: int) -> float | None:
    """Return BLEU after the last update; None if the run is not finished."""
    log = run / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    for record in map(json.loads, lines):
        if record["kind"] == "valid" and record["update"] == update and "bleu" in record:
            return float(record["bleu"])
    return None


def main(argv: Sequence[str]) -> int:
    """Train what is not trained yet, and write the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    add = parser.add_argument
    add("--teacher", type=Path, required=True, help="run folder of the quick start")
    add("--updates", type=int, default=300, metavar="N", help="updates of each student")
    add("--seeds", type=int, nargs="+", default=[1, 2], help="seeds of every kind of student")
    add("--kinds", type=int, nargs="+", default=list(range(len(KINDS))), help="numbers of kinds")
    add("--out", type=Path, default=Path("runs") / "students", help="folder of all students")
    arguments = parser.parse_args(argv)
    updates, seeds = (20, [1]) if arguments.quick else (arguments.updates, arguments.seeds)
    lab = Lab(arguments.teacher.resolve(), arguments.out.resolve(), updates)
    lab.out.mkdir(parents=True, exist_ok=True)
    os.chdir(lab.teacher.parents[1])  # the quick start's paths are relative to it
    kinds = [KINDS[number] for number in arguments.kinds]
    scores: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    for seed in seeds:
        for kind in kinds:
            scores[kind.name].append(lab.bleu(kind, seed))
    body, goals = _report(lab, kinds, seeds, scores)
    return finish("Students by what they take from their teacher", body, goals, arguments.record)


def _report(
    lab: Lab, kinds: Sequence[Kind], seeds: Sequence[int], scores: Mapping[str, list[float]]
) -> tuple[str, list[Goal]]:
    """Return the table and the goals: no help of the teacher costs BLEU beyond the seeds."""
    rows, goals = [], []
    for kind in kinds:
        bleu, row = scores[kind.name], [kind.name, Spread.of(scores[kind.name]).text(2), ""]
        if kind.base != kind.name and kind.base in scores:
            base = scores[kind.base]
            gain = statistics.mean(bleu) - statistics.mean(base)
            row[-1] = f"{gain:+.2f}"
            noise = max(max(values) - min(values) for values in (bleu, base))
            goals.append(Goal(f"BLEU of {kind.name} over {kind.base}", gain, -noise))
        rows.append(row)
    remarks = (
        f"Teacher: the quick start's model with experts. *layers*: its encoder and the first layer "
        f"of its decoder. *narrower*: width {NARROW['d_model']}, dense, from scratch. *words*: "
        f"word-level distillation with temperature {KD['temperature']} (0.8, cross entropy 0.2). "
        f"*hidden states*: with weight 3; *projected*: through a learned projection. *own "
        f"vocabulary*: {OWN_VOCABULARY} pieces, which the teacher does not have. *sentences*: the "
        f"teacher's greedy translations in place of the targets. {lab.updates} updates each; "
        f"validation BLEU of {SENTENCES} sentences; median (and extremes) of seeds "
        f"{', '.join(map(str, seeds))}; gain: difference of the means."
    )
    return f"{table(['student', 'BLEU', 'gain'], rows)}\n\n{remarks}", goals


if __name__ == "__main__":
    raise SystemExit(run_command(main, sys.argv[1:]))
