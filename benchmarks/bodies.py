"""Kinds of models side by side: translation at equal processor time, and long outputs.

`translation` trains an encoder-decoder of each kind for about the same processor time of one
thread, learning-rate schedule and all, and scores the test text. `decoding` measures the time of a
step and what a hypothesis keeps at each position of a long output, with random weights, the
hypotheses of the beam reordered at every step.

    python benchmarks/bodies.py translation --out runs/bodies --minutes 6 --record
    python benchmarks/bodies.py decoding --record

A finished training in `--out` is not repeated, so the table can be made in parts (`--only`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Goal, finish, table, timed_command
from experiments import CACHE, fetch_text
from long_outputs import POSITIONS, VOCAB, growth
from pydantic import TypeAdapter

import ds_seq
from ds_seq.config.model import ModelConfig
from ds_seq.models import build_model
from ds_seq.scores.metric import find_metric
from ds_seq.scores.significance import Resampling, score_systems
from ds_seq.text.lines import read_lines

CONFIG = Path(__file__).parents[1] / "configs" / "experiments" / "tiny_dense.yaml"
PICTURE = RESULTS.parents[1] / "docs" / "bodies.png"
BODIES: Mapping[str, dict[str, Any]] = {
    "transformer": {},
    "retention in the decoder": {"decoder_mixer": {"name": "retention", "num_heads": 2}},
    "dynamic convolution": {
        "encoder_mixer": "dynamic_convolution",
        "decoder_mixer": "dynamic_convolution",
    },
    "lstm": {
        "name": "recurrent",
        "encoder_embedding_dim": 128,
        "decoder_embedding_dim": 128,
        "encoder_hidden_dim": 128,
        "decoder_hidden_dim": 256,
        "output_dim": 128,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "input_feeding": False,
        "max_positions": 4097,
    },
}
METRICS = ("bleu", "chrf")
SHORT, LONG = 10, 50  # updates of the two trainings whose difference tells the time of an update
CONSTANT = ("retention in the decoder", "dynamic convolution", "lstm")


class Lab:
    """The folder of the trainings.

    Args:
        out: the folder.
        text: folder of the text, from `fetch_text`.
        minutes: processor time of a training.
    """

    def __init__(self, out: Path, text: Path, minutes: float) -> None:
        self.out, self.text, self.minutes = out.resolve(), text, minutes

    def settings(self, body: str, run: str, updates: int) -> list[str]:
        """Return the overrides of a training."""
        raw = {
            split: {
                side: str(self.text / "raw" / f"{split}.{language}")
                for side, language in (("source", "en"), ("target", "de"))
            }
            for split in ("train", "valid", "test")
        }
        return [
            f"name={body.replace(' ', '_')}",
            f"run_dir={self.out / run}",
            f"data.dir={self.out / 'data'}",
            f"data.raw={json.dumps(raw)}",
            *_model(BODIES[body]),
            f"train.max_updates={updates}",
            f"train.validate_every={updates}",
            f"scheduler.warmup_updates={max(updates // 6, 1)}",
        ]

    def update_seconds(self, body: str) -> float:
        """Measure the processor time of an update, without that of starting."""
        quiet = ["validation={metrics: [], best: loss}", "train.validate_every=1000000"]
        spent = [
            timed_command(
                "train", CONFIG, *self.settings(body, f"probe-{n}", n), *quiet, "--overwrite"
            )
            for n in (SHORT, LONG)
        ]
        return (spent[1] - spent[0]) / (LONG - SHORT)

    def trained(self, body: str) -> dict[str, float]:
        """Train a kind of model unless that is done; return what is known of the training."""
        run = body.replace(" ", "_")
        done = self.out / f"{run}.json"
        if not done.exists():
            updates = max(int(60 * self.minutes / self.update_seconds(body)), 2)
            seconds = timed_command("train", CONFIG, *self.settings(body, run, updates))
            figures = {"updates": updates, "seconds": seconds}
            done.write_text(json.dumps(figures), encoding="utf-8")
        found: dict[str, float] = json.loads(done.read_text(encoding="utf-8"))
        return found

    def parameters(self, body: str) -> int:
        """Return the number of parameters of a trained model."""
        trained = ds_seq.load(self.out / body.replace(" ", "_"), checkpoint="last")
        return sum(weight.numel() for weight in trained.module.parameters())

    def translations(self, body: str) -> list[str]:
        """Return the test text as the trained model translates it."""
        run = body.replace(" ", "_")
        path = self.out / f"{run}.hyp"
        if not path.exists():
            source = self.text / "raw" / "test.en"
            words = ["--checkpoint", "last", "--input", source, "--output", path]
            timed_command("generate", self.out / run, *words)
        return read_lines(path)


def translation(lab: Lab, names: Sequence[str]) -> tuple[str, list[Goal]]:
    """Train and score; return the table and the goals."""
    lab.out.mkdir(parents=True, exist_ok=True)
    if not (lab.out / "data" / "vocab.model").exists():
        timed_command("prepare", CONFIG, *lab.settings(names[0], "unused", SHORT))
    made = {name: lab.trained(name) for name in names}
    systems = {name: lab.translations(name) for name in names}
    references = read_lines(lab.text / "raw" / "test.de")
    metrics = [find_metric(name, "de", "benchmark") for name in METRICS]
    scores = score_systems(systems, [references], metrics, Resampling(confidence=True))
    rows = []
    for name in names:
        figures = [json.loads(line) for line in _lines(lab, name)]
        valid = [line for line in figures if line["kind"] == "valid"][-1]
        rows.append(
            [
                name,
                f"{lab.parameters(name) / 1e6:.2f}M",
                f"{made[name]['updates']:,.0f}",
                f"{made[name]['seconds'] / 60:.1f}",
                f"{valid['nll']:.3f}",
                *(f"{score.value:.2f} ± {score.ci:.2f}" for score in scores[name]),
            ]
        )
    header = ["kind", "parameters", "updates", "processor minutes", "valid nats", "BLEU", "chrF"]
    best = max(values[0].value for values in scores.values())
    goals = [
        Goal(f"BLEU of {name} to the best", values[0].value / best, 0.5)
        for name, values in scores.items()
    ]
    return table(header, rows), goals


def _lines(lab: Lab, name: str) -> list[str]:
    path = lab.out / name.replace(" ", "_") / "metrics.jsonl"
    return path.read_text(encoding="utf-8").splitlines()


def _built(section: Mapping[str, Any]) -> Any:
    """Build a model from its section."""
    config = TypeAdapter(ModelConfig).validate_python(section)
    return build_model(config, VOCAB, 1, 0, seed=1)


def _model(section: Mapping[str, Any]) -> list[str]:
    """Return the overrides of the section `model`, which replace it if the name is another."""
    if "name" in section:
        return [f"model={json.dumps(section)}"]
    return [f"model.{key}={json.dumps(value)}" for key, value in section.items()]


def decoding(names: Sequence[str]) -> tuple[str, list[Goal]]:
    """Measure long outputs; return the table and the goals."""
    return growth({name: _long_model(name) for name in names}, CONSTANT, PICTURE)


def _long_model(name: str) -> Any:
    """Return a model of this kind with one layer that is made for the longest output."""
    fields = {"d_model": 256, "ffn_dim": 1024, "num_heads": 4, "encoder_layers": 1}
    fields |= {"decoder_layers": 1, "norm_position": "pre", "max_positions": POSITIONS[-1] + 1}
    return _built({**({} if "name" in BODIES[name] else fields), **BODIES[name]})


def main(argv: Sequence[str]) -> int:
    """Measure, print, and record on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("translation", "decoding"))
    parser.add_argument("--out", type=Path, help="folder of the trainings")
    parser.add_argument("--tsv", type=Path, help="text to use instead of fetching one")
    parser.add_argument("--minutes", type=float, default=6.0, help="of processor time per training")
    parser.add_argument("--only", nargs="+", choices=list(BODIES), default=list(BODIES))
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.part == "decoding":
        body, goals = decoding(args.only)
        return finish("Long outputs of each kind of model", body, goals, args.record)
    if args.out is None:
        parser.error("translation needs --out")
    lab = Lab(args.out, fetch_text(CACHE, args.tsv), args.minutes)
    body, goals = translation(lab, args.only)
    return finish("Kinds of models at equal processor time", body, goals, args.record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
