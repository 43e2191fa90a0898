"""Language models of each kind at equal parameters and updates: perplexity of the same text.

All read the same batches: the English side of a parallel text, whose lines are joined to blocks.

    python benchmarks/language_models.py --tsv general.en-de.train.tsv --out runs/lms --record

A finished training in `--out` is not repeated, so the table can be made in parts (`--only`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, Goal, finish, table, timed_command
from experiments import CACHE, fetch_text

import ds_seq
from ds_seq.config.yaml_file import to_yaml

WIDTH, LAYERS, BLOCK = 128, 4, 256
# Retention has 8 D^2 parameters where attention has 4 D^2, so its feed-forward is narrower.
BODIES: Mapping[str, dict[str, Any]] = {
    "transformer": {"ffn_dim": 4 * WIDTH, "positions": "rotary"},
    "retention": {
        "ffn_dim": 2 * WIDTH,
        "decoder_mixer": {"name": "retention", "num_heads": 2},
        "positions": "none",
    },
    "dilated attention": {
        "ffn_dim": 4 * WIDTH,
        "decoder_mixer": {
            "name": "dilated",
            "segment_lengths": [32, 64, BLOCK],
            "dilations": [1, 2, 4],
        },
        "positions": "rotary",
    },
    "dynamic convolution": {"ffn_dim": 4 * WIDTH, "decoder_mixer": "dynamic_convolution"},
    "lstm": {
        "name": "recurrent_lm",
        "decoder_layers": 2,
        "decoder_embedding_dim": WIDTH,
        "decoder_hidden_dim": 232,  # the parameters of the Transformer
        "output_dim": WIDTH,
        "max_positions": BLOCK,
    },
}
SIZE = 0.05  # largest difference in parameters from the Transformer
WORST = 1.35  # largest perplexity to that of the Transformer


class Lab:
    """The folder of the trainings.

    Args:
        out: the folder.
        text: folder of the text, from `fetch_text`.
        updates: updates of each training.
    """

    def __init__(self, out: Path, text: Path, updates: int) -> None:
        self.out, self.updates = out.resolve(), updates
        self._raw = {
            split: [{"text": str(text / "raw" / f"{split}.en")}]
            for split in ("train", "valid", "test")
        }

    def run(self, body: str) -> Path:
        """Return the run folder of a kind of model."""
        return self.out / body.replace(" ", "_")

    def experiment(self, body: str) -> Path:
        """Write the experiment of a kind of model; return its file."""
        settings = {
            "name": body.replace(" ", "_"),
            "run_dir": str(self.run(body)),
            "data": {
                "language": "en",
                "dir": str(self.out / "data"),
                "raw": self._raw,
                "vocab": {"size": 4000, "model_type": "bpe"},
            },
            "task": {"name": "language_modeling", "block_tokens": BLOCK},
            "model": _section(body),
            "optimizer": {"name": "adamw", "lr": 3e-3, "betas": [0.9, 0.98], "weight_decay": 1e-4},
            "scheduler": {
                "name": "cosine",
                "warmup_updates": self.updates // 10,
                "min_lr": 1e-5,
            },
            "criterion": {"name": "cross_entropy", "label_smoothing": 0.0},
            "train": {
                "max_tokens": 2048,
                "clip_norm": 1.0,
                "max_updates": self.updates,
                "log_every": 25,
                "validate_every": self.updates,
                "tensorboard": False,
            },
            "validation": {"metrics": ["perplexity"], "best": "perplexity"},
        }
        file = self.out / f"{settings['name']}.yaml"
        file.write_text(to_yaml(settings), encoding="utf-8")
        return file

    def trained(self, body: str) -> dict[str, float]:
        """Train a kind of model unless that is done; return what is known of it."""
        done = self.run(body).with_suffix(".json")
        if not done.exists():
            seconds = timed_command("train", self.experiment(body), "--overwrite")
            lines = (self.run(body) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            valid = [line for line in map(json.loads, lines) if line["kind"] == "valid"][-1]
            module = ds_seq.load(self.run(body), checkpoint="last").module
            figures = {
                "parameters": sum(weight.numel() for weight in module.parameters()),
                "seconds": seconds,
                "perplexity": valid["perplexity"],
            }
            done.write_text(json.dumps(figures), encoding="utf-8")
        found: dict[str, float] = json.loads(done.read_text(encoding="utf-8"))
        return found


def _section(body: str) -> dict[str, Any]:
    """Return the section `model` of a kind of model."""
    common = {"name": "decoder_only", "d_model": WIDTH, "decoder_layers": LAYERS, "num_heads": 4}
    common |= {"dropout": 0.1, "norm_position": "pre", "max_positions": BLOCK}
    return {**({} if "name" in BODIES[body] else common), **BODIES[body]}


def report(lab: Lab, names: Sequence[str]) -> tuple[str, list[Goal]]:
    """Train what is missing; return the table and the goals."""
    found = {name: lab.trained(name) for name in names}
    first = found[names[0]]
    header = ["kind", "parameters", "processor minutes", "perplexity"]
    rows = [
        [
            name,
            f"{each['parameters'] / 1e6:.2f}M",
            f"{each['seconds'] / 60:.1f}",
            f"{each['perplexity']:.2f}",
        ]
        for name, each in found.items()
    ]
    goals = []
    for name in names[1:]:
        size = abs(found[name]["parameters"] / first["parameters"] - 1)
        worse = found[name]["perplexity"] / first["perplexity"]
        goals.append(Goal(f"{name}: other parameters than {names[0]}", size, SIZE, "", False))
        goals.append(Goal(f"{name}: perplexity to {names[0]}", worse, WORST, "x", at_least=False))
    remark = (
        f"Validation text, blocks of {BLOCK} tokens without further context, {lab.updates:,} "
        "updates of at most 2,048 tokens, vocabulary of 4,000, one seed."
    )
    return f"{table(header, rows)}\n\n{remark}", goals


def main(argv: Sequence[str]) -> int:
    """Train, print, and record on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--tsv", type=Path, help="text to use instead of fetching one")
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=list(BODIES), default=list(BODIES))
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    args = parser.parse_args(argv)
    lab = Lab(args.out, fetch_text(CACHE, args.tsv), args.updates)
    lab.out.mkdir(parents=True, exist_ok=True)
    if not (lab.out / "data" / "vocab.model").exists():
        timed_command("prepare", lab.experiment(args.only[0]))
    body, goals = report(lab, args.only)
    return finish("Language models of each kind", body, goals, args.record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
