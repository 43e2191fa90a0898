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
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from common import RESULTS, Goal, finish, table
from curve_plot import load_matplotlib
from experiments import CACHE, fetch_text
from pydantic import TypeAdapter
from torch import Tensor

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
VOCAB, BEAM, SOURCE = 1000, 4, 24
POSITIONS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
WINDOW = 16  # steps up to a position, of which the median is taken
GROWTH = 1.3  # most that a step of constant cost may take at the last position, to the first
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

    def ds_seq(self, *words: object) -> float:
        """Run a command on one thread; return its processor time in seconds."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "ds_seq", *map(str, words)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def update_seconds(self, body: str) -> float:
        """Measure the processor time of an update, without that of starting."""
        quiet = ["validation={metrics: [], best: loss}", "train.validate_every=1000000"]
        spent = [
            self.ds_seq(
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
            seconds = self.ds_seq("train", CONFIG, *self.settings(body, run, updates))
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
            self.ds_seq("generate", self.out / run, *words)
        return read_lines(path)


def translation(lab: Lab, names: Sequence[str]) -> tuple[str, list[Goal]]:
    """Train and score; return the table and the goals."""
    lab.out.mkdir(parents=True, exist_ok=True)
    if not (lab.out / "data" / "vocab.model").exists():
        lab.ds_seq("prepare", CONFIG, *lab.settings(names[0], "unused", SHORT))
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


class Step(NamedTuple):
    """A step at a position."""

    milliseconds: float
    """Of all hypotheses of a sentence."""
    bytes: int
    """Held by the cache."""


def held_bytes(cache: object) -> int:
    """Return the bytes of the storages of all tensors that a cache leads to."""
    seen: set[int] = set()
    storages: dict[int, int] = {}
    waiting: list[Any] = [cache]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, (torch.nn.Module, str, bytes, type)):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        else:
            waiting.extend(gc.get_referents(value) if _holds(value) else ())
    return sum(storages.values())


def _holds(value: object) -> bool:
    """Return whether an object is a plain container or one of ours."""
    return isinstance(value, (list, tuple, dict)) or type(value).__module__.startswith("ds_seq")


@torch.inference_mode()
def decoded(model: Any) -> Iterator[tuple[int, Step]]:
    """Yield the positions with the cost of a step there."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(4, VOCAB, (1, SOURCE), generator=generator)
    encoded = model.eval().encode(source, torch.ones_like(source).bool())
    cache = model.start_cache(encoded, BEAM, POSITIONS[-1])
    spent: list[float] = []
    for position in range(1, POSITIONS[-1] + 1):
        rows = torch.randint(0, BEAM, (BEAM,), generator=generator)
        tokens = torch.randint(4, VOCAB, (BEAM,), generator=generator)
        start = time.process_time()
        model.decode_step(tokens, cache)
        cache.reorder(rows)
        spent.append(time.process_time() - start)
        if position in POSITIONS:
            yield position, Step(1e3 * median(spent[-WINDOW:]), held_bytes(cache))


def decoding(names: Sequence[str]) -> tuple[str, list[Goal]]:
    """Measure long outputs; draw the picture; return the table and the goals."""
    found = {name: dict(decoded(_long_model(name))) for name in names}
    rows = [
        [
            f"{position:,}",
            *(f"{steps[position].milliseconds:.2f}" for steps in found.values()),
            *(f"{steps[position].bytes / 1e6:.2f}" for steps in found.values()),
        ]
        for position in POSITIONS
    ]
    header = ["position", *(f"{name}, ms" for name in names), *(f"{name}, MB" for name in names)]
    goals = []
    for name in CONSTANT:
        if name in found:
            first, last = found[name][POSITIONS[0]], found[name][POSITIONS[-1]]
            label = f"{name}: position {POSITIONS[-1]:,} to {POSITIONS[0]}"
            ratio = last.milliseconds / first.milliseconds
            goals.append(Goal(f"{label}, time", ratio, GROWTH, "x", at_least=False))
            goals.append(Goal(f"{label}, memory", last.bytes / first.bytes, 1.0, "x", False))
    _draw(found)
    return table(header, rows), goals


def _long_model(name: str) -> Any:
    """Return a model of this kind with one layer that is made for the longest output."""
    fields = {"d_model": 256, "ffn_dim": 1024, "num_heads": 4, "encoder_layers": 1}
    fields |= {"decoder_layers": 1, "norm_position": "pre", "max_positions": POSITIONS[-1] + 1}
    return _built({**({} if "name" in BODIES[name] else fields), **BODIES[name]})


def _draw(found: Mapping[str, Mapping[int, Step]]) -> None:
    picture = load_matplotlib().Figure(figsize=(8, 3.6), layout="constrained")
    labels = {"milliseconds": "ms per step", "bytes": "MB held"}
    for panel, (field, label) in zip(picture.subplots(1, 2), labels.items(), strict=True):
        for name, steps in found.items():
            scale = 1e-6 if field == "bytes" else 1.0
            values = [scale * step._asdict()[field] for step in steps.values()]
            panel.plot(list(steps), values, marker="o", markersize=3, label=name)
        panel.set_xscale("log", base=2)
        panel.set_xticks(POSITIONS, [f"{each:,}" for each in POSITIONS], rotation=45)
        panel.set_ylim(bottom=0)
        panel.set_xlabel("position in the output")
        panel.set_ylabel(label)
        panel.grid(alpha=0.25)
    panel.legend(frameon=False)
    picture.savefig(PICTURE, dpi=110)


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
