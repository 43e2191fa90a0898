"""Whether very deep models train in fp16: DeepNorm and SubLN against the plain post-norm.

Each curve is a run of `ds-seq train axes/deep.yaml` with another depth and place of the norms; all
else, seed and batches included, is the same. The text is only a few sentences, again and again:
from more, so few updates learn nothing but how frequent each token is, at any depth. `--minutes`
stops a run after so long; started again with the same `--out`, the script goes on from the last
checkpoints.

    python benchmarks/deep_curves.py --out runs/deep --record
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import RESULTS, Goal, finish, table
from experiments import CACHE, fetch_text

from ds_seq.commands.plot import main as plot
from ds_seq.errors import EXIT_DIVERGED

CONFIG = Path(__file__).with_name("axes") / "deep.yaml"
PICTURE = RESULTS.parents[1] / "docs" / "deep_curves.png"
UPDATES, MEAN_OF, PAIRS = 200, 5, 24
MARGIN = 1.0  # nats below the entropy of single tokens: more than their frequencies is learned


@dataclass(frozen=True)
class Deep:
    """One curve: layers of each stack, place of the norms, and whether it should train."""

    layers: int
    norm_position: str
    trains: bool

    @property
    def name(self) -> str:
        """Name of the run."""
        return f"{self.norm_position}_{self.layers}+{self.layers}"


CURVES = (
    Deep(100, "deepnorm", trains=True),
    Deep(100, "post", trains=False),
    Deep(24, "subln", trains=True),
    Deep(24, "post", trains=False),
)


def write_text(text: Path, folder: Path) -> None:
    """Write the first sentences of a text."""
    (folder / "raw").mkdir()
    for language in ("en", "de"):
        lines = (text / "raw" / f"train.{language}").read_text(encoding="utf-8").splitlines()
        out = folder / "raw" / f"train.{language}"
        out.write_text("\n".join(lines[:PAIRS]) + "\n", encoding="utf-8")


def settings(folder: Path, deep: Deep) -> list[str]:
    """Return the `key=value` of a curve."""
    raw = {
        f"data.raw.train.{side}": folder / "raw" / f"train.{language}"
        for side, language in (("source", "en"), ("target", "de"))
    }
    values = {
        "name": deep.name,
        "run_dir": folder / deep.name,
        "data.dir": folder / "data",
        **raw,
        "model.norm_position": deep.norm_position,
        "model.encoder_layers": deep.layers,
        "model.decoder_layers": deep.layers,
    }
    return [f"{key}={value}" for key, value in values.items()]


def train(folder: Path, deep: Deep, minutes: float) -> bool:
    """Start or continue a curve; return whether it has reached its end or has diverged.

    Raises:
        SystemExit: training failed for another reason.
    """
    ended = folder / f"{deep.name}.ended"
    if ended.exists():
        return True
    options = [*settings(folder, deep), f"train.max_hours={minutes / 60}", "--resume"]
    status = _ds_seq("train", options, folder / f"{deep.name}.log")
    if status not in (0, EXIT_DIVERGED):
        raise SystemExit(f"{deep.name} failed with {status}, see {folder / deep.name}.log")
    if status == EXIT_DIVERGED or UPDATES in losses(folder / deep.name):
        ended.write_text("diverged" if status else "finished", encoding="utf-8")
    return ended.exists()


def _ds_seq(command: str, options: Sequence[str], log: Path) -> int:
    line = [sys.executable, "-m", "ds_seq", command, str(CONFIG), *options]
    with log.open("a", encoding="utf-8") as file:
        return subprocess.run(line, stdout=file, stderr=subprocess.STDOUT).returncode


def losses(run: Path) -> dict[int, float]:
    """Return the logged losses of a run by update, in nats per token."""
    file = run / "metrics.jsonl"
    if not file.exists():
        return {}
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {line["update"]: line["nll"] for line in lines if line["kind"] == "train"}


def token_entropy(data: Path) -> float:
    """Return the entropy of single target tokens in nats: the loss of knowing frequencies only."""
    tokens = np.concatenate([np.fromfile(f, np.uint16) for f in data.glob("train.*.tgt.bin")])
    counts = np.bincount(tokens)
    shares = counts[counts > 0] / len(tokens)
    return float(-(shares * np.log(shares)).sum())


def _end(curve: Mapping[int, float]) -> float:
    """Return the mean of the last logged losses."""
    last = [curve[update] for update in sorted(curve)[-MEAN_OF:]]
    return sum(last) / len(last)


def report(folder: Path, chosen: Sequence[Deep], record: bool) -> int:
    """Print the table, draw the picture, and return 1 if a curve is not as expected."""
    entropy = token_entropy(folder / "data")
    rows, goals = [], []
    for deep in chosen:
        curve = losses(folder / deep.name)
        ended = folder / f"{deep.name}.ended"
        end = ended.read_text(encoding="utf-8") if ended.exists() else "not finished"
        marks = [f"{curve[update]:.2f}" if update in curve else "" for update in (50, 100, 150)]
        rows.append([deep.name, *marks, f"{_end(curve):.2f}", str(max(curve)), end])
        if deep.trains:
            name = f"{deep.name}: last loss below that of frequencies alone"
            goals.append(Goal(name, entropy - _end(curve), MARGIN, " nats"))
        else:
            name = f"{deep.name}: the same, of the plain post-norm"
            goals.append(Goal(name, entropy - _end(curve), MARGIN, " nats", at_least=False))
    header = ["curve", "update 50", "100", "150", "last", "updates", "end"]
    body = (
        f"{table(header, rows)}\n\nTraining loss in nats per target token; `last` is the mean of "
        f"the last {MEAN_OF} logged ones, each of 5 updates. Knowing only how frequent each token "
        f"is gives {entropy:.2f}. Width 64, feed-forward 128, fp16 with dynamic loss scale, Adam, "
        f"peak learning rate 2e-3 after 50 updates, at most 150 tokens per update, {PAIRS} pairs."
        f"\n\n![Losses and gradient norms](../docs/{PICTURE.name})"
    )
    runs = [str(folder / deep.name) for deep in chosen]
    out = PICTURE if record else folder / PICTURE.name
    plot([*runs, "--out", str(out), "--figures", "nll,grad_norm"])
    return finish("Very deep models in fp16", body, goals, record)


def main(argv: Sequence[str]) -> int:
    """Train what is not trained yet, and report once everything is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [deep.name for deep in CURVES]
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--tsv", type=Path, help="text to use instead of fetching one")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so long")
    parser.add_argument(
        "--record", action="store_true", help=f"append to {RESULTS.name}, picture in docs/"
    )
    parser.add_argument("--report", action="store_true", help="report what there is, train nothing")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [deep for deep in CURVES if deep.name in args.only]
    if args.report:
        started = [deep for deep in chosen if losses(args.out / deep.name)]
        return report(args.out, started, args.record)
    if not (args.out / "data" / "vocab.model").exists():
        write_text(fetch_text(CACHE, args.tsv), args.out)
        status = _ds_seq("prepare", settings(args.out, chosen[0]), args.out / "prepare.log")
        if status:
            raise SystemExit(f"prepare failed, see {args.out / 'prepare.log'}")
    stop = time.monotonic() + 60 * args.minutes
    for deep in chosen:
        left = (stop - time.monotonic()) / 60
        if left <= 0 or not train(args.out, deep, left):
            print(f"{deep.name} is not finished; run the same command again")
            return 0
    return report(args.out, chosen, args.record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
