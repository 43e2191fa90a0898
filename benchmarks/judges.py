"""Shallow fusion and noisy-channel rescoring: what a language model and a reverse model add.

A small Transformer (`tiny_dense.yaml`) learns to translate from few pairs, another one to translate
back, and a language model reads the German of all pairs. On the validation text, the weight of the
language model in the search is chosen, and those of both models that judge the translations of a
wider beam; the test text is then translated with these weights.

    python benchmarks/judges.py --out runs/judges --record

A finished training in `--out` is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from common import RESULTS, Goal, finish, table, timed_command
from experiments import CACHE, fetch_text

from ds_seq.config.yaml_file import to_yaml
from ds_seq.scores.metric import find_metric
from ds_seq.scores.scoring import build_metric, score_corpus
from ds_seq.scores.significance import Resampling, score_systems
from ds_seq.text.lines import read_lines

CONFIG = Path(__file__).parents[1] / "configs" / "experiments" / "tiny_dense.yaml"
LANGUAGES = ("en", "de")
WEIGHTS = (0.05, 0.1, 0.2, 0.3, 0.5)
BEAM, WIDE = 4, 10
LOSS = "validation={metrics: [], best: loss}"


class Sizes(NamedTuple):
    """How much is learned and translated."""

    pairs: int
    """To learn to translate from."""
    updates: int
    """Of each translation model."""
    lm_updates: int
    """Of the language model."""
    lines: int
    """Of the validation text and of the test text."""


class Lab:
    """The folder of the trainings.

    Args:
        out: the folder.
        text: folder of the text, from `fetch_text`.
        sizes: how much.
        changes: settings of all trainings, `key=value`.
    """

    def __init__(self, out: Path, text: Path, sizes: Sizes, changes: Sequence[str]) -> None:
        self.out, self.sizes, self._changes = out.resolve(), sizes, list(changes)
        self.out.mkdir(parents=True, exist_ok=True)
        raw = text / "raw"
        for language in LANGUAGES:
            for split, most in (("train", None), ("valid", sizes.lines), ("test", sizes.lines)):
                self._copy(raw / f"{split}.{language}", f"{split}.{language}", most)
            self._copy(raw / f"train.{language}", f"few.{language}", sizes.pairs)

    def _copy(self, text: Path, name: str, most: int | None) -> None:
        lines = read_lines(text)[:most]
        content = "".join(f"{line}\n" for line in lines)
        (self.out / name).write_text(content, encoding="utf-8")

    def file(self, name: str) -> Path:
        """Return a file of the folder."""
        return self.out / name

    def translator(self, source: str, target: str) -> Path:
        """Return the run folder of a model from one language to the other."""
        run, data = self.file(f"{source}-{target}"), self.file(f"data-{source}-{target}")
        raw = {
            split: {"source": str(self.file(f"{name}.{source}")),
                    "target": str(self.file(f"{name}.{target}"))}
            for split, name in (("train", "few"), ("valid", "valid"), ("test", "test"))
        }  # fmt: skip
        settings = [
            f"data.source_lang={source}", f"data.target_lang={target}", f"data.dir={data}",
            f"data.raw={json.dumps(raw)}", f"run_dir={run}", LOSS, *self._changes,
            f"scheduler.warmup_updates={max(self.sizes.updates // 6, 1)}",
            f"train.max_updates={self.sizes.updates}",
            f"train.validate_every={self.sizes.updates}",
        ]  # fmt: skip
        self._train(CONFIG, run, data, settings)
        return run

    def language_model(self) -> Path:
        """Return the run folder of the language model of German."""
        run, data, file = self.file("lm"), self.file("data-lm"), self.file("lm.yaml")
        texts = {split: [{"text": str(self.file(f"{split}.de"))}] for split in ("train", "valid")}
        section = {"name": "decoder_only", "d_model": 128, "decoder_layers": 2, "num_heads": 4}
        rates = {"name": "adamw", "lr": 5e-3, "betas": [0.9, 0.98], "weight_decay": 1e-4}
        warmup = max(self.sizes.lm_updates // 6, 1)
        experiment: Mapping[str, object] = {
            "name": "lm",
            "run_dir": str(run),
            "data": {
                "language": "de",
                "dir": str(data),
                "raw": texts,
                "vocab": {"size": 3500, "model_type": "bpe"},
            },
            "task": {"name": "language_modeling", "blocks": "line", "block_tokens": 128},
            "model": {**section, "ffn_dim": 512, "dropout": 0.1, "norm_position": "pre"},
            "criterion": {"name": "cross_entropy", "label_smoothing": 0.0},
            "optimizer": rates,
            "scheduler": {"name": "cosine", "warmup_updates": warmup, "min_lr": 1e-5},
            "train": {
                "max_tokens": 2000,
                "clip_norm": 1.0,
                "max_updates": self.sizes.lm_updates,
                "validate_every": self.sizes.lm_updates,
            },
        }
        file.write_text(to_yaml(dict(experiment)), encoding="utf-8")
        self._train(file, run, data, self._changes)
        return run

    def _train(self, config: Path, run: Path, data: Path, settings: Sequence[str]) -> None:
        figures = run / "metrics.jsonl"
        if figures.exists() and '"max_updates"' in figures.read_text(encoding="utf-8"):
            return
        first = self.file("data-en-de") / "vocab.model"
        if first.exists() and not data.exists():  # all models have one vocabulary
            data.mkdir()
            shutil.copy(first, data)
        timed_command("prepare", config, *settings)
        timed_command("train", config, *settings, "--overwrite")

    def translation(self, run: Path, split: str, name: str, *options: object) -> Path:
        """Return the translation of a split, with further options of `ds-seq generate`."""
        path = self.file(f"{split}.{name}")
        if not path.exists():
            files = ("--input", self.file(f"{split}.en"), "--output", path)
            timed_command("generate", run, *files, *options)
        return path

    def rescored(
        self, run: Path, split: str, rows: Path, name: str, *options: object
    ) -> tuple[Path, str]:
        """Return the best translation of each line of an n-best list, and what was printed."""
        path = self.file(f"{split}.{name}")
        words = [
            "rescore", run, "--source", self.file(f"{split}.en"), "--hypotheses", rows,
            "--hypotheses-format", "tsv", "--format", "text", "--output", path, *options,
        ]  # fmt: skip
        command = [sys.executable, "-m", "ds_seq", *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(done.stderr)
        return path, done.stderr


def compare(lab: Lab) -> tuple[str, list[Goal]]:
    """Train, choose weights, translate and score; return the table and the goals."""
    run, back = lab.translator("en", "de"), lab.translator("de", "en")
    lm = lab.language_model()
    metric = build_metric("bleu", "de")
    tuned = {
        weight: score_corpus(
            "bleu",
            metric,
            read_lines(lab.translation(run, "valid", f"fused-{weight}", *_fusion(lm, weight))),
            [read_lines(lab.file("valid.de"))],
        ).value
        for weight in WEIGHTS
    }
    weight = max(tuned, key=lambda each: tuned[each])
    systems = {
        f"beam {BEAM}": lab.translation(run, "test", "plain", "--beam", BEAM),
        f"beam {BEAM} with the language model, weight {weight:g}": lab.translation(
            run, "test", f"fused-{weight}", *_fusion(lm, weight)
        ),
        f"beam {WIDE}": lab.translation(run, "test", "wide", "--beam", WIDE),
    }
    lists = ("--beam", WIDE, "--n-best", WIDE, "--format", "tsv")
    valid, test = (lab.translation(run, split, "tsv", *lists) for split in ("valid", "test"))
    kinds = {
        "the reverse model": ["--channel", back],
        "the language model": ["--lm", lm],
        "both": ["--channel", back, "--lm", lm],
    }
    for number, (name, models) in enumerate(kinds.items()):
        tune = ("--tune", lab.file("valid.de"))
        _, printed = lab.rescored(run, "valid", valid, f"judged-{number}", *models, *tune)
        found = re.search(r"--channel-weight (\S+) --lm-weight (\S+): BLEU", printed)
        assert found is not None, printed
        weights = ("--channel-weight", found[1], "--lm-weight", found[2])
        path, _ = lab.rescored(run, "test", test, f"judged-{number}", *models, *weights)
        shown = " and ".join(each for each in found.groups() if each != "0")
        systems[f"its {WIDE} best judged by {name}, weight {shown or 0}"] = path
    return _scored(lab, {name: read_lines(path) for name, path in systems.items()}, tuned)


def _fusion(lm: Path, weight: float) -> tuple[object, ...]:
    return ("--beam", BEAM, "--lm", lm, "--lm-weight", weight)


def _scored(
    lab: Lab, systems: Mapping[str, Sequence[str]], tuned: Mapping[float, float]
) -> tuple[str, list[Goal]]:
    metrics = [find_metric(name, "de", "benchmark") for name in ("bleu", "chrf")]
    references = [read_lines(lab.file("test.de"))]
    lists = {name: list(lines) for name, lines in systems.items()}
    scores = score_systems(lists, references, metrics, Resampling(confidence=True))
    rows = [
        [name, *(f"{score.value:.2f} ± {score.ci:.2f}" for score in values)]
        for name, values in scores.items()
    ]
    plain, fused, wide, *judged = (values[0].value for values in scores.values())
    sizes = lab.sizes
    steps = ", ".join(f"{weight:g}: {value:.2f}" for weight, value in tuned.items())
    remark = (
        f"{sizes.pairs:,} pairs, {sizes.updates:,} updates of each translation model and "
        f"{sizes.lm_updates:,} of the language model, {sizes.lines:,} lines of test text, one "
        f"seed. BLEU of the validation text by the weight of the language model: {steps}."
    )
    goals = [
        Goal("BLEU gained by shallow fusion", fused - plain, 0.0),
        Goal("BLEU gained by both judges over the wide beam", judged[-1] - wide, 0.0),
    ]
    return f"{table(['test text', 'BLEU', 'chrF'], rows)}\n\n{remark}", goals


def main(argv: Sequence[str]) -> int:
    """Measure, print, and record on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--tsv", type=Path, help="text to use instead of fetching one")
    parser.add_argument("--pairs", type=int, default=10_000, help="to learn to translate from")
    parser.add_argument("--updates", type=int, default=1200, help="of each translation model")
    parser.add_argument("--lm-updates", type=int, default=800, help="of the language model")
    parser.add_argument("--lines", type=int, default=1000, help="of validation and of test text")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="settings of all trainings")
    args = parser.parse_intermixed_args(argv)
    sizes = Sizes(args.pairs, args.updates, args.lm_updates, args.lines)
    body, goals = compare(Lab(args.out, fetch_text(CACHE, args.tsv), sizes, args.changes))
    return finish("A language model and a reverse model judge", body, goals, args.record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
