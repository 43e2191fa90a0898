"""Denoising before translation, against translation alone, with few pairs.

A model learns to restore noisy English and German text (`pretrain_denoising.yaml`). Then it, and a
new one, learn to translate from the same few pairs (`finetune_denoised.yaml`). Each trains until
its validation no longer improves, so that the new one gets as many updates as it has a use for;
its best and its last checkpoint translate the test text.

    python benchmarks/denoising.py --out runs/denoising --best bleu --record
    python benchmarks/denoising.py --out runs/small --updates 1000 train.max_tokens=1000

A finished training in `--out` is not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, Goal, finish, table, timed_command
from experiments import CACHE, fetch_text

from ds_seq.scores.metric import find_metric
from ds_seq.scores.significance import Resampling, score_systems
from ds_seq.text.lines import read_lines

CONFIGS = Path(__file__).parents[1] / "configs" / "experiments"
PRETRAIN, FINETUNE = CONFIGS / "pretrain_denoising.yaml", CONFIGS / "finetune_denoised.yaml"
SIDES = (("source", "en"), ("target", "de"))
# A rate that does not depend on the number of updates, which the validation decides.
UNTIL_BEST = (
    "scheduler={name: inverse_sqrt, warmup_updates: 100}",
    "train.patience=4",
    "train.max_updates=10000",
)
BY = {
    "loss": ("validation={metrics: [], best: loss}", "train.validate_every=100"),
    "bleu": (
        "validation={metrics: [bleu], best: bleu, max_sentences: 200}",
        "train.validate_every=200",
    ),
}
CHECKPOINTS = ("best", "last")


class Lab:
    """The folder of the trainings.

    Args:
        out: the folder.
        text: folder of the text, from `fetch_text`.
        pairs: number of pairs to translate from.
        updates: updates of the pre-training.
        by: what ends a training and chooses its best checkpoint, `loss` or `bleu`.
        changes: settings of all trainings, `key=value`.
    """

    def __init__(
        self, out: Path, text: Path, pairs: int, updates: int, by: str, changes: Sequence[str]
    ) -> None:
        self.out, self.text, self.pairs, self.updates = out.resolve(), text, pairs, updates
        self.by, self._changes = by, changes

    def _settings(self, folder: str, train: Path) -> list[str]:
        raw = {split: self._files(self.text / "raw", split) for split in ("valid", "test")}
        raw["train"] = self._files(train, "train")
        folders = [f"data.dir={self.out / folder}", f"data.raw={json.dumps(raw)}"]
        return [*folders, *self._changes]

    @staticmethod
    def _files(folder: Path, split: str) -> dict[str, str]:
        return {side: str(folder / f"{split}.{language}") for side, language in SIDES}

    def pretrained(self) -> Path:
        """Return the run folder of the pre-training."""
        settings = self._settings("text", self.text / "raw")
        run = self.out / "pretrained"
        settings += [f"run_dir={run}", f"train.max_updates={self.updates}"]
        settings += [f"train.validate_every={self.updates}"]
        if not (self.out / "text" / "vocab.model").exists():
            timed_command("prepare", PRETRAIN, *settings)
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
            timed_command("prepare", FINETUNE, *settings)
        run = self.out / f"{'scratch' if pretrained is None else 'denoised'}-{seed}-{self.by}"
        start = "null" if pretrained is None else pretrained
        settings += [f"run_dir={run}", f"train.init_from={start}", f"train.seed={seed}"]
        settings += [*UNTIL_BEST, *BY[self.by]]
        self._train(FINETUNE, run, settings)
        return run

    def _train(self, config: Path, run: Path, settings: Sequence[str]) -> None:
        if not any(line.get("reason") in ("max_updates", "patience") for line in figures(run)):
            timed_command("train", config, *settings, "--overwrite")

    def translations(self, run: Path, checkpoint: str) -> list[str]:
        """Return the test text as a checkpoint of a run translates it."""
        path = run.with_suffix(f".{checkpoint}")
        if not path.exists():
            words = ["--input", self.text / "raw" / "test.en", "--output", path]
            timed_command("generate", run, "--checkpoint", checkpoint, *words)
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
        systems = {
            f"{name}, {checkpoint}": lab.translations(run, checkpoint)
            for name, run in runs.items()
            for checkpoint in CHECKPOINTS
        }
        scores = score_systems(systems, [references], metrics, Resampling(confidence=True))
        reached = {}
        for name, run in runs.items():
            valid = [line for line in figures(run) if line["kind"] == "valid"]
            sign = 1.0 if lab.by == "loss" else -1.0
            shown = (min(valid, key=lambda line: sign * line[lab.by]), valid[-1])
            for checkpoint, line in zip(CHECKPOINTS, shown, strict=True):
                found = scores[f"{name}, {checkpoint}"]
                each = [f"{score.value:.2f} ± {score.ci:.2f}" for score in found]
                nats = f"{line['nll']:.3f}"
                rows.append([name, checkpoint, str(seed), f"{line['update']:,}", nats, *each])
                reached[name] = max(reached.get(name, 0.0), found[0].value)
        gain = reached["denoised before"] - reached["from scratch"]
        goals.append(Goal(f"BLEU gained by denoising, seed {seed}", gain, 1.0))
    valid = [line for line in figures(pretrained) if line["kind"] == "valid"][-1]
    body = (
        f"{lab.pairs:,} pairs; {lab.updates:,} updates of denoising, after which the model gives "
        f"{valid['accuracy']:.1f} % of the tokens the highest probability.\n\n"
    )
    header = ["start", "checkpoint", "seed", "updates", "valid nats", "BLEU", "chrF"]
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
    parser.add_argument("--best", choices=list(BY), default="loss", help="until it is best")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="settings of all trainings")
    args = parser.parse_intermixed_args(argv)
    text = fetch_text(CACHE, args.tsv)
    lab = Lab(args.out, text, args.pairs, args.updates, args.best, args.changes)
    body, goals = compare(lab, args.seeds)
    return finish("Denoising before translation from few pairs", body, goals, args.record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
