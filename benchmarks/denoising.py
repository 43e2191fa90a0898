"""Denoising before translation, against translation alone, with few pairs.

A model learns to restore noisy English and German text (`pretrain_denoising.yaml`). Then it, and a
new one, learn to translate from the same few pairs with the same updates
(`finetune_denoised.yaml`), and both translate the test text.

    python benchmarks/denoising.py --out runs/denoising --record

A finished training in `--out` is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, Goal, finish, table
from experiments import CACHE, fetch_text

from ds_seq.scores.metric import find_metric
from ds_seq.scores.significance import Resampling, score_systems
from ds_seq.text.lines import read_lines

CONFIGS = Path(__file__).parents[1] / "configs" / "experiments"
PRETRAIN, FINETUNE = CONFIGS / "pretrain_denoising.yaml", CONFIGS / "finetune_denoised.yaml"
SIDES = (("source", "en"), ("target", "de"))


class Lab:
    """The folder of the trainings.

    Args:
        out: the folder.
        text: folder of the text, from `fetch_text`.
        pairs: number of pairs to translate from.
        updates: updates of the pre-training.
    """

    def __init__(self, out: Path, text: Path, pairs: int, updates: int) -> None:
        self.out, self.text, self.pairs, self.updates = out.resolve(), text, pairs, updates

    def _settings(self, folder: str, train: Path) -> list[str]:
        raw = {split: self._files(self.text / "raw", split) for split in ("valid", "test")}
        raw["train"] = self._files(train, "train")
        return [f"data.dir={self.out / folder}", f"data.raw={json.dumps(raw)}"]

    @staticmethod
    def _files(folder: Path, split: str) -> dict[str, str]:
        return {side: str(folder / f"{split}.{language}") for side, language in SIDES}

    def ds_seq(self, *words: object) -> None:
        """Run a command on one thread."""
        command = [sys.executable, "-m", "ds_seq", *map(str, words)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def pretrained(self) -> Path:
        """Return the run folder of the pre-training."""
        settings = self._settings("text", self.text / "raw")
        run = self.out / "pretrained"
        settings += [f"run_dir={run}", f"train.max_updates={self.updates}"]
        settings += [f"train.validate_every={self.updates}"]
        if not (self.out / "text" / "vocab.model").exists():
            self.ds_seq("prepare", PRETRAIN, *settings)
        self._train(PRETRAIN, run, settings)
        return run

    def finetuned(self, seed: int, pretrained: Path | None) -> Path:
        """Return the run folder of a training on few pairs, from a run or from nothing."""
        few = self.out / "few"
        settings = self._settings("few", few)
        if not (few / "train.manifest.json").exists():
            few.mkdir(exist_ok=True)
            shutil.copy(self.out / "text" / "vocab.model", few)
            for _, language in SIDES:
                lines = read_lines(self.text / "raw" / f"train.{language}")[: self.pairs]
                content = "".join(f"{line}\n" for line in lines)
                (few / f"train.{language}").write_text(content, encoding="utf-8")
            self.ds_seq("prepare", FINETUNE, *settings)
        run = self.out / f"{'scratch' if pretrained is None else 'denoised'}-{seed}"
        start = "null" if pretrained is None else pretrained
        settings += [f"run_dir={run}", f"train.init_from={start}", f"train.seed={seed}"]
        self._train(FINETUNE, run, settings)
        return run

    def _train(self, config: Path, run: Path, settings: Sequence[str]) -> None:
        if not any(line.get("reason") == "max_updates" for line in figures(run)):
            self.ds_seq("train", config, *settings, "--overwrite")

    def translations(self, run: Path) -> list[str]:
        """Return the test text as a run's best checkpoint translates it."""
        path = run.with_suffix(".hyp")
        if not path.exists():
            source = self.text / "raw" / "test.en"
            self.ds_seq("generate", run, "--input", source, "--output", path)
        return read_lines(path)


def figures(run: Path) -> list[dict[str, Any]]:
    """Return the figures of a run; none if it has not begun."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def compare(lab: Lab, seeds: Sequence[int]) -> tuple[str, list[Goal]]:
    """Train and score; return the table and the goals."""
    lab.out.mkdir(parents=True, exist_ok=True)
    pretrained = lab.pretrained()
    references = read_lines(lab.text / "raw" / "test.de")
    metrics = [find_metric(name, "de", "benchmark") for name in ("bleu", "chrf")]
    rows, goals = [], []
    for seed in seeds:
        runs = {"from scratch": lab.finetuned(seed, None)}
        runs["denoised before"] = lab.finetuned(seed, pretrained)
        systems = {name: lab.translations(run) for name, run in runs.items()}
        scores = score_systems(systems, [references], metrics, Resampling(confidence=True))
        for name, run in runs.items():
            best = min(line["nll"] for line in figures(run) if line["kind"] == "valid")
            each = [f"{score.value:.2f} ± {score.ci:.2f}" for score in scores[name]]
            rows.append([name, str(seed), f"{best:.3f}", *each])
        gain = scores["denoised before"][0].value - scores["from scratch"][0].value
        goals.append(Goal(f"BLEU gained by denoising, seed {seed}", gain, 1.0))
    valid = [line for line in figures(pretrained) if line["kind"] == "valid"][-1]
    body = (
        f"{lab.pairs:,} pairs; {lab.updates:,} updates of denoising, after which the model gives "
        f"{valid['accuracy']:.1f} % of the tokens the highest probability.\n\n"
    )
    header = ["start", "seed", "best valid nats", "BLEU", "chrF"]
    return body + table(header, rows), goals


def main(argv: Sequence[str]) -> int:
    """Measure, print, and record on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--tsv", type=Path, help="text to use instead of fetching one")
    parser.add_argument("--pairs", type=int, default=2000, help="to learn to translate from")
    parser.add_argument("--updates", type=int, default=3000, help="of denoising")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the fine-tuning")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    args = parser.parse_args(argv)
    lab = Lab(args.out, fetch_text(CACHE, args.tsv), args.pairs, args.updates)
    body, goals = compare(lab, args.seeds)
    return finish("Denoising before translation from few pairs", body, goals, args.record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
