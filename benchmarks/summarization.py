#!/usr/bin/env python3
"""Summarization from text to ROUGE: from scratch, a BART of transformers, a student, and the lead.

    python benchmarks/summarization.py --raw data/synopsis/raw --out FOLDER --python VENV/bin/python

All models are trained by `ds-seq train` on the synopses of `prepare_data/synopsis.py` and
summarize the same test texts. The lead is the first words of a text: eight, and as many as are best
on the validation text. What is finished in `--out` is not done again, and a training that was
stopped (`--slice` seconds of it at a time) goes on. `--python` has transformers.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common import Goal, finish, table

from ds_seq.scores.metric import find_metric
from ds_seq.scores.significance import Resampling, score_systems
from ds_seq.text.lines import read_lines

HERE = Path(__file__).parent
EXPERIMENT = HERE.parent / "configs" / "experiments" / "summarize_synopsis.yaml"
METRICS = ("rouge1", "rouge2", "rougeL")
LEADS = range(4, 21)
STUDENT_LAYERS = 1
WARMUP = 200  # updates, at least, from random weights: with 40, ours does not learn
BART_RATE = 2e-3  # post-norm; initial_rates.py compares others
_WIDTH = 128
BART = {
    "vocab_size": 4000,
    "d_model": _WIDTH,
    # its default, 0.02, is for a width of about 1024: here, attention to the source would begin so
    # weak that the decoder learns to do without it; with width ** -0.5, it learns slowly
    "init_std": 0.5 * _WIDTH**-0.5,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "max_position_embeddings": 128,
    "dropout": 0.1,
}


class Lab:
    """The folder of the runs, and how they are made."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out: Path = arguments.out.resolve()
        self.raw: Path = arguments.raw.resolve()
        self.python: str = arguments.python
        self.slice: int = arguments.slice
        self.most: int | None = arguments.test_texts
        self.updates: dict[str, int] = {
            "scratch": arguments.updates,
            "bart": arguments.updates,
            "student": arguments.student_updates,
        }

    def ds_seq(self, *words: object) -> int:
        """Run a command; return its exit code."""
        return subprocess.run([sys.executable, "-m", "ds_seq", *map(str, words)]).returncode

    def overrides(self, name: str) -> list[str]:
        """Return the settings of a run that differ from the experiment."""
        updates = self.updates[name]
        warmup = updates // 10 if name == "student" else max(updates // 10, WARMUP)
        common = [
            f"name={name}",
            f"run_dir={self.out / name}",
            f"data.dir={self.out / ('data-bart' if name == 'bart' else 'data')}",
            f"data.raw={self.raw}",
            f"train.max_updates={updates}",
            f"scheduler.warmup_updates={warmup}",
            f"train.validate_every={max(updates // 4, 1)}",
        ]
        if name == "bart":
            path = self.out / "bart-hf"
            vocab = (
                f"{{name: huggingface, size: 4000, model_type: unigram, "
                f"huggingface: {{path: {path}}}}}"
            )
            model = (
                "{activation: gelu, positions: learned, max_positions: 128, norm_position: post, "
                "embedding_scale: false, embedding_norm: true}"
            )
            return [*common, f"data.vocab={vocab}", f"model={model}", f"optimizer.lr={BART_RATE}",
                    f"train.init_from={self.out / 'bart-import'}"]  # fmt: skip
        if name == "student":
            teacher = self.out / "scratch"
            return [*common, f"model.decoder_layers={STUDENT_LAYERS}", "optimizer.lr=1e-3",
                    f"train.init_from={self.out / 'student-start.safetensors'}",
                    f"criterion={{name: distillation, teacher: {teacher}}}"]  # fmt: skip
        return common

    def make_start(self, name: str) -> None:
        """Make what a run starts from."""
        if name == "bart" and not (self.out / "bart-import").exists():
            config, folder = self.out / "bart.json", self.out / "bart-hf"
            config.write_text(json.dumps(BART))
            texts = [str(self.raw / f"train.{end}") for end in ("source", "target")]
            side = [self.python, str(HERE / "summarization_bart.py"), str(config), str(folder)]
            subprocess.run([*side, *texts], check=True)
            words = ["--source-lang", "en", "--target-lang", "en", "--no-compare"]
            out = ["--out", self.out / "bart-import"]
            assert self.ds_seq("import", "huggingface", folder, *out, *words) == 0
        if name == "student" and not (self.out / "student-start.safetensors").exists():
            words = ["--decoder-layers", STUDENT_LAYERS]
            out = ["--out", self.out / "student-start.safetensors"]
            assert self.ds_seq("make-student", self.out / "scratch", *words, *out) == 0

    def train(self, name: str) -> bool:
        """Train for at most a slice; return whether the training is complete."""
        if (self.out / f"{name}.done").exists():
            return True
        self.make_start(name)
        settings = self.overrides(name)
        assert self.ds_seq("prepare", EXPERIMENT, *settings) == 0
        more = ["--resume"] if (self.out / name).exists() else []
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "ds_seq", "train", str(EXPERIMENT), *settings, *more]
        process = subprocess.Popen(command)
        try:
            code = process.wait(self.slice)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # training saves and stops
            code = process.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        with open(self.out / f"{name}.seconds", "a") as file:
            file.write(f"{seconds:.1f}\n")
        complete = code == 0 and self.last_update(name) >= self.updates[name]
        if complete:
            (self.out / f"{name}.done").touch()
        return complete

    def last_update(self, name: str) -> int:
        """Return the newest update of a run."""
        rows = (self.out / name / "metrics.jsonl").read_text().splitlines()
        return max((int(json.loads(row).get("update", 0)) for row in rows), default=0)

    def seconds(self, name: str) -> float:
        """Return the processor time of a training."""
        return sum(map(float, (self.out / f"{name}.seconds").read_text().split()))

    def test(self, end: str) -> list[str]:
        """Return the sources or targets of the test texts."""
        return read_lines(self.raw / f"test.{end}")[: self.most]

    def summaries(self, name: str) -> list[str]:
        """Return what a run makes of the test texts."""
        path = self.out / f"{name}.hyp"
        if not path.exists():
            source = self.out / "test.source"
            source.write_text("".join(f"{line}\n" for line in self.test("source")))
            words = ["--checkpoint", "last", "--input", source, "--output", path]
            done = self.ds_seq("generate", self.out / name, *words)
            assert done == 0
        return read_lines(path)


def lead(texts: Sequence[str], words: int) -> list[str]:
    """Return the first words of each text."""
    return [" ".join(text.split()[:words]) for text in texts]


def best_lead(raw: Path) -> int:
    """Return the length of the lead with the best ROUGE-2 on the validation text."""
    texts, summaries = (read_lines(raw / f"val.{end}") for end in ("source", "target"))
    metric = find_metric("rouge2", "en", "benchmark")
    values = {n: metric.compute(lead(texts, n), [summaries]).value for n in LEADS}
    return max(values, key=lambda n: values[n])


def report(lab: Lab, names: Sequence[str]) -> tuple[str, list[Goal]]:
    """Score all systems; return the table and the goals."""
    texts, summaries = lab.test("source"), lab.test("target")
    longest = best_lead(lab.raw)
    systems = {"first 8 words": lead(texts, 8), f"first {longest} words": lead(texts, longest)}
    systems |= {name: lab.summaries(name) for name in names}
    metrics = [find_metric(name, "en", "benchmark") for name in METRICS]
    scores = score_systems(systems, [summaries], metrics, Resampling(confidence=True))
    header = ["system", "updates", "processor minutes", "words", "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    rows: list[list[str]] = []
    for name, values in scores.items():
        made = name in names
        rows.append(
            [
                name,
                f"{lab.last_update(name):,}" if made else "",
                f"{lab.seconds(name) / 60:.1f}" if made else "",
                f"{sum(len(line.split()) for line in systems[name]) / len(texts):.1f}",
                *(f"{score.value:.1f} ± {score.ci:.1f}" for score in values),
            ]
        )
    rouge = {name: values[0].value for name, values in scores.items()}
    goals = [
        Goal(f"ROUGE-1 of {name} to that of scratch", rouge[name] / rouge["scratch"], 0.8)
        for name in names
        if name != "scratch"
    ]
    return table(header, rows), goals


def main() -> int:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, required=True, help="folder of the six files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--python", default=sys.executable, help="interpreter with transformers")
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--student-updates", type=int, default=300)
    parser.add_argument("--only", nargs="+", default=["scratch", "bart", "student"])
    parser.add_argument("--slice", type=int, default=10**6, help="seconds of one training")
    parser.add_argument("--test-texts", type=int, help="number of test texts (default: all)")
    parser.add_argument("--train-only", action="store_true", help="leave the table for later")
    parser.add_argument("--record", action="store_true", help="append the table to RESULTS.md")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    lab = Lab(arguments)
    if not all([lab.train(name) for name in arguments.only]) or arguments.train_only:
        return 0
    return finish("Summarization", *report(lab, arguments.only), arguments.record)


if __name__ == "__main__":
    sys.exit(main())
