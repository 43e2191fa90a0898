"""What the criterions of docs/CRITERIONS.md and R-Drop are good for, on generated text.

English and German sentences of one pattern (`tests/data/toy.py`), models of 64 units, one process:

- `r_drop`: 500 updates on 400 pairs, with and without `criterion.r_drop=5`;
- `minimum_risk`: 200 updates of cross entropy, then 150 of minimum risk or of more cross entropy;
- `hard_em`: 2,000 pairs, half of them with the adverb at the end; the order that each of two
  experts uses, and the two best of a beam search of a model with cross entropy;
- `back_translation`: 50 pairs in both directions, with and without 3,000 sentences of German alone.

    python -m benchmarks.criterions FOLDER [--only r_drop ...] [--record]
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from benchmarks.common import Goal, finish, table
from ds_seq.scores.scoring import build_metric, score_corpus
from tests.data.toy import toy_pairs

ADVERB = re.compile(r"(heute|am Abend|jeden Tag|hier) (\S+) (\S+ \S+) (.*)")
COMMON = """\
data:
  source_lang: en
  target_lang: de
  dir: data
  raw: {{valid: {{source: test.en, target: test.de}}{train}}}
  max_source_length: 40
  max_target_length: 40
  vocab: {{size: 300, model_type: bpe, user_symbols: [{symbols}]}}
{mix}
model:
  {{d_model: 64, encoder_layers: 2, decoder_layers: 2, num_heads: 2, ffn_dim: 128, dropout: 0.1,
    norm_position: pre, max_positions: 64}}
optimizer: {{name: adamw, lr: 4e-3, betas: [0.9, 0.98]}}
scheduler: {{name: inverse_sqrt, warmup_updates: 60}}
train:
  {{max_tokens: 1000, clip_norm: 1.0, max_updates: 500, log_every: 50, validate_every: null,
    save_every: 10000, tensorboard: false}}
generation: {{beam: 3}}
"""
PAIRS = ", train: {source: train.en, target: train.de}"
CORPORA = """\
  mixing:
    language_tags: {en: <2en>, de: <2de>}
    epoch_pairs: 800
    stages:
      - {shares: {forth: 1, back: 1}, until: {updates: 300}}
      - {shares: {forth: 1, back: 1, mono: 2}}
  corpora:
    forth: {source: few.en, target: few.de}
    back: {source: few.de, target: few.en, languages: [de, en]}
    mono: {source: mono.de, target: mono.de, tag: <bt>, back_translate: {sampling: true}}
"""
Row = list[str]


class Lab:
    """A folder with text, an experiment and runs."""

    def __init__(self, folder: Path, experiment: str) -> None:
        self.folder = folder
        (folder / "toy.yaml").write_text(experiment, encoding="utf-8")
        self("prepare", "toy.yaml")

    def __call__(self, *words: str) -> str:
        """Run a command of ds_seq in the folder; it must succeed."""
        command = [sys.executable, "-m", "ds_seq", *words]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
        return done.stdout

    def train(self, name: str, *options: str) -> None:
        """Train a run anew."""
        self("train", "toy.yaml", "--overwrite", f"name={name}", *options)

    def lists(self, name: str, *options: str) -> list[list[str]]:
        """Return the translations of the test text by rank of the n-best list."""
        out = f"{name}.jsonl"
        files = ("--input", "test.en", "--output", out, "--format", "jsonl")
        self("generate", f"runs/{name}", "--checkpoint", "last", *files, *options)
        lines = (self.folder / out).read_text(encoding="utf-8").splitlines()
        rows = [[each["text"] for each in json.loads(line)["hypotheses"]] for line in lines]
        return [list(rank) for rank in zip(*rows, strict=True)]

    def bleu(self, name: str, *options: str) -> float:
        """Return the BLEU of the best translations of the test text."""
        reference = (self.folder / "test.de").read_text(encoding="utf-8").splitlines()
        return _bleu(self.lists(name, *options)[0], reference)


def _bleu(hypotheses: list[str], references: list[str]) -> float:
    return score_corpus("bleu", build_metric("bleu", "de"), hypotheses, [references]).value


def _write(folder: Path, name: str, pairs: Sequence[tuple[str, str]]) -> None:
    for side, end in enumerate(("en", "de")):
        text = "\n".join(pair[side] for pair in pairs)
        (folder / f"{name}.{end}").write_text(text + "\n", encoding="utf-8")


def _adverb_last(german: str) -> str:
    found = ADVERB.fullmatch(german)
    assert found is not None, german
    adverb, verb, subject, rest = found.groups()
    return f"{subject} {verb} {rest} {adverb}"


def r_drop(folder: Path) -> tuple[list[Row], list[Goal]]:
    """Compare equal updates on few pairs."""
    _write(folder, "train", toy_pairs(400, seed=9))
    lab = Lab(folder, "name: toy\n" + COMMON.format(train=PAIRS, symbols="", mix=""))
    lab.train("plain")
    lab.train("r_drop", "criterion.r_drop=5")
    plain, ours = lab.bleu("plain"), lab.bleu("r_drop")
    rows = [["cross entropy, 500 updates on 400 pairs", f"{plain:.2f}"]]
    rows.append(["the same with criterion.r_drop=5", f"{ours:.2f}"])
    return rows, [Goal("BLEU with R-Drop", ours, plain)]


def minimum_risk(folder: Path) -> tuple[list[Row], list[Goal]]:
    """Continue a model that has not learned all."""
    _write(folder, "train", toy_pairs(400, seed=9))
    lab = Lab(folder, "name: toy\n" + COMMON.format(train=PAIRS, symbols="", mix=""))
    lab.train("before", "train.max_updates=200")
    more = (
        "train.init_from=runs/before",
        "train.init_checkpoint=last",
        "train.max_updates=150",
        "train.max_tokens=640",
        "optimizer={name: adam, lr: 5.0e-4}",
        "scheduler={name: constant, warmup_updates: 10}",
    )
    risk = "{name: minimum_risk, candidates: 8, sharpness: 0.05}"
    lab.train("risk", *more, f"criterion={risk}")
    lab.train("more", *more)
    before, risk_bleu, more_bleu = (lab.bleu(name) for name in ("before", "risk", "more"))
    rows = [
        ["cross entropy, 200 updates", f"{before:.2f}"],
        [f"then 150 updates of {risk}", f"{risk_bleu:.2f}"],
        ["or 150 more of cross entropy", f"{more_bleu:.2f}"],
    ]
    return rows, [Goal("BLEU after minimum risk", risk_bleu, before)]


def hard_em(folder: Path) -> tuple[list[Row], list[Goal]]:
    """Let two experts learn two orders of the words."""
    draw, pairs = random.Random(1), toy_pairs(2000, seed=9)
    mixed = [(en, _adverb_last(de) if draw.random() < 0.5 else de) for en, de in pairs]
    _write(folder, "train", mixed)
    symbols = "<one>, <two>"
    lab = Lab(folder, "name: toy\n" + COMMON.format(train=PAIRS, symbols=symbols, mix=""))
    lab.train("experts", f"criterion={{name: hard_em, experts: [{symbols}]}}")
    lab.train("plain")
    rows, pairwise = [], []
    by_expert = lab.lists("experts", "--expert", "all")
    for name, found in (
        ("by expert", by_expert),
        ("of a beam", lab.lists("plain", "--n-best", "2")),
    ):
        pairwise.append(mean(_bleu(a, b) for a, b in itertools.permutations(found, 2)))
        shares = [mean(ADVERB.fullmatch(line) is not None for line in rank) for rank in found]
        firsts = " and ".join(f"{share:.0%}" for share in shares)
        rows.append([f"two translations {name}: pairwise BLEU", f"{pairwise[-1]:.1f}"])
        rows.append([f"two translations {name}: adverb first in", firsts])
    gap = pairwise[1] / pairwise[0]
    return rows, [Goal("pairwise BLEU of the beam to that of the experts", gap, 1.0)]


def back_translation(folder: Path) -> tuple[list[Row], list[Goal]]:
    """Add text in German to few pairs."""
    pairs = toy_pairs(3500, seed=5)
    _write(folder, "few", pairs[:50])
    _write(folder, "mono", pairs[300:3300])
    symbols = "<2en>, <2de>, <bt>"
    lab = Lab(folder, "name: toy\n" + COMMON.format(train="", symbols=symbols, mix=CORPORA))
    alone = "data.mixing.shares={forth: 1, back: 1, mono: 1.0e-6}"
    lab.train("alone", "train.max_updates=700", "data.mixing.stages=[]", alone)
    lab.train("back", "train.max_updates=700")
    without, ours = (lab.bleu(name, "--target-lang", "de") for name in ("alone", "back"))
    rows = [["50 pairs in both directions, 700 updates", f"{without:.2f}"]]
    rows.append(["300 of them, then 400 with back-translations", f"{ours:.2f}"])
    return rows, [Goal("BLEU with back-translations", ours, without)]


CASES: dict[str, Callable[[Path], tuple[list[Row], list[Goal]]]] = {
    case.__name__: case for case in (r_drop, minimum_risk, hard_em, back_translation)
}


def main() -> int:
    """Run the chosen cases, each in a folder of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--record", action="store_true", help="append the output to RESULTS.md")
    args = parser.parse_args()
    rows, goals = [], []
    for name in args.only:
        folder = args.folder.resolve() / name
        folder.mkdir(parents=True)
        # sentences of a seed are the first of a longer list of it: none of these is trained on
        _write(folder, "test", toy_pairs(3700, seed=9 if name != "back_translation" else 5)[3500:])
        found, wanted = CASES[name](folder)
        rows += [[name, *row] for row in found]
        goals += wanted
    body = table(["case", "model", "BLEU"], rows)
    return finish("Criterions that generate or choose, on generated text", body, goals, args.record)


if __name__ == "__main__":
    sys.exit(main())
