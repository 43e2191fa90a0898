"""Perplexity on texts longer than those of the training, for each kind of positions.

Sentences of LibreOffice help are joined to texts of at most 24 tokens for the training, and
held-out ones to texts of at most 24, 48 and 96 tokens for the test: the same sentences at each
length, so that only the length differs. Small models are trained alike (axes/extrapolation.yaml),
one for each kind of positions, and score the reference translations. The scalings of rotary
positions need no training: they change the angles of the trained model, by the factor of the
length.

Trained models are kept in `--out`; `--minutes` stops after so long, and the same command goes on.

    python benchmarks/extrapolation.py --out runs/extrapolation --record
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from common import RESULTS, finish, table
from curve_plot import load_matplotlib
from experiments import CACHE, fetch_text

import ds_seq
from ds_seq.config.yaml_file import read_yaml, to_yaml

CONFIG = Path(__file__).with_name("axes") / "extrapolation.yaml"
PICTURE = RESULTS.parents[1] / "docs" / "extrapolation.png"
TRAINED, TIMES = 24, (1, 2, 4)
_WORDS = 13  # about as many as 24 tokens
KINDS = ("sinusoidal", "learned", "none", "rotary", "xpos", "alibi", "buckets")
SCALINGS = ("linear", "ntk", "yarn")

Pair = tuple[str, str]


class Row(NamedTuple):
    """Perplexity of one kind of positions on the texts of one length."""

    kind: str
    times: int
    """Length of the texts over that of the training."""
    perplexity: float
    tokens: float
    """Mean length of the texts in target tokens, end symbol included."""


def joined(pairs: Sequence[Pair], fits: Callable[[Pair], bool]) -> Iterator[Pair]:
    """Join neighbors as long as the result fits; a pair that does not fit alone is left out."""
    current: Pair | None = None
    for pair in pairs:
        if not fits(pair):
            continue
        longer = pair if current is None else (f"{current[0]} {pair[0]}", f"{current[1]} {pair[1]}")
        if fits(longer):
            current = longer
        else:
            assert current is not None
            yield current
            current = pair
    if current is not None:
        yield current


def _read(folder: Path, split: str) -> list[Pair]:
    sides = [
        (folder / "raw" / f"{split}.{side}").read_text(encoding="utf-8").splitlines()
        for side in ("en", "de")
    ]
    return list(zip(*sides, strict=True))


def write_text(source: Path, folder: Path) -> None:
    """Write the joined training text."""
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    for split in ("train", "valid"):
        pairs = _read(source, split)
        random.Random(1).shuffle(pairs)
        texts = list(joined(pairs, lambda pair: max(len(s.split()) for s in pair) <= _WORDS))
        for position, side in enumerate(("en", "de")):
            lines = "".join(f"{text[position]}\n" for text in texts)
            (folder / "raw" / f"{split}.{side}").write_text(lines, encoding="utf-8")


def settings(folder: Path, kind: str) -> list[str]:
    """Return the `key=value` of a model."""
    raw = {
        f"data.raw.{split}.{side}": folder / "raw" / f"{split}.{lang}"
        for split in ("train", "valid")
        for side, lang in (("source", "en"), ("target", "de"))
    }
    values = {
        "name": kind,
        "run_dir": folder / kind,
        "data.dir": folder / "data",
        "model.positions": kind,
        **raw,
    }
    return [f"{key}={value}" for key, value in values.items()]


def run_ds_seq(command: str, options: Sequence[str], log: Path) -> None:
    """Run a command on the experiment.

    Raises:
        SystemExit: it failed.
    """
    line = [sys.executable, "-m", "ds_seq", command, str(CONFIG), *options]
    with log.open("a", encoding="utf-8") as file:
        status = subprocess.run(line, stdout=file, stderr=subprocess.STDOUT).returncode
    if status:
        raise SystemExit(f"{command} failed with {status}, see {log}")


def is_trained(run: Path) -> bool:
    """Return whether a run has reached its last update."""
    file = run / "metrics.jsonl"
    if not file.exists():
        return False
    updates = read_yaml(CONFIG).data["train"]["max_updates"]
    last = file.read_text(encoding="utf-8").splitlines()[-1]
    return int(json.loads(last)["update"]) >= updates


def scaled(run: Path, scaling: str, factor: int) -> Path:
    """Copy a run with rotary positions, with its angles scaled; return the copy."""
    copy = run.with_name(f"{run.name}-{scaling}-{factor}")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    config = read_yaml(copy / "config.yaml").data
    positions = {"name": "rotary", "scaling": scaling, "factor": float(factor)}
    if scaling == "yarn":
        positions["original_length"] = TRAINED
    config["model"]["positions"] = positions
    (copy / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    return copy


def test_texts(run: Path, text: Path) -> dict[int, list[Pair]]:
    """Return held-out texts of about 1, 2 and 4 times the length, made of the same sentences."""
    tokenizers = ds_seq.load(run).card.tokenizers
    pairs = _read(text, "valid") + _read(text, "test")
    random.Random(2).shuffle(pairs)

    def length(pair: Pair) -> int:
        return 1 + max(
            len(tokenizer.encode(side)) for tokenizer, side in zip(tokenizers, pair, strict=True)
        )

    short = [pair for pair in pairs if length(pair) <= TRAINED]
    return {
        times: list(joined(short, lambda pair, most=times * TRAINED: length(pair) <= most))
        for times in TIMES
    }


def perplexity(run: Path, texts: Sequence[Pair], kind: str, times: int) -> Row:
    """Score the translations with a model."""
    model = ds_seq.load(run)
    scored = model.score([source for source, _ in texts], [target for _, target in texts])
    tokens = sum(len(each.token_scores) for each in scored)
    total = math.fsum(each.log_prob for each in scored)
    return Row(kind, times, math.exp(-total / tokens), tokens / len(texts))


def measure(folder: Path, text: Path, kinds: Sequence[str]) -> list[Row]:
    """Score all texts with all models, unless that is done."""
    rows: list[Row] = []
    for kind in kinds:
        file = folder / f"{kind}.rows.json"
        if not file.exists():
            found = _measured(folder, test_texts(folder / kind, text), kind)
            file.write_text(json.dumps(found), encoding="utf-8")
        rows += [Row(*row) for row in json.loads(file.read_text(encoding="utf-8"))]
    # kinds first, then what was made of the rotary one
    return sorted(rows, key=lambda row: "," in row.kind)


def _measured(folder: Path, texts: Mapping[int, Sequence[Pair]], kind: str) -> list[Row]:
    """Score all texts with one model; scalings are for the longer texts only."""
    rows = [perplexity(folder / kind, texts[times], kind, times) for times in TIMES]
    for scaling in SCALINGS if kind == "rotary" else ():
        for times in TIMES[1:]:
            run = scaled(folder / kind, scaling, times)
            rows.append(perplexity(run, texts[times], f"{kind}, {scaling}", times))
            shutil.rmtree(run)
    return rows


def report(rows: Sequence[Row], picture: Path) -> str:
    """Draw the picture; return the table."""
    by_kind: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_kind.setdefault(row.kind, {})[row.times] = row
    lengths = {row.times: row.tokens for row in rows}
    cells = [
        [kind, *(f"{found[t].perplexity:.1f}" if t in found else "" for t in TIMES)]
        for kind, found in by_kind.items()
    ]
    header = ["positions", *(f"{t}x: {lengths[t]:.0f} tokens" for t in TIMES)]
    _draw(by_kind, lengths, picture)
    return table(header, cells)


def _draw(
    by_kind: Mapping[str, Mapping[int, Row]], lengths: Mapping[int, float], out: Path
) -> None:
    picture = load_matplotlib().Figure(figsize=(7, 4.2), layout="constrained")
    panel = picture.subplots()
    for number, (kind, found) in enumerate(by_kind.items()):
        xs = [lengths[times] for times in found]
        ys = [row.perplexity for row in found.values()]
        style = "--" if "," in kind else "-"
        panel.plot(xs, ys, style, marker="o", markersize=4, color=f"C{number}", label=kind)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    ticks = [lengths[times] for times in TIMES]
    panel.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    panel.yaxis.set_major_formatter("{x:.0f}")
    panel.yaxis.set_minor_formatter("{x:.0f}")
    panel.axvline(TRAINED, color="gray", linestyle=":", linewidth=1)
    panel.set_xlabel(f"mean length in target tokens; trained on at most {TRAINED} (dotted)")
    panel.set_ylabel("perplexity of the reference translations")
    panel.grid(alpha=0.25, which="both")
    picture.legend(*panel.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(out, dpi=130)


def main(argv: Sequence[str]) -> int:
    """Train what is not trained yet, and report once everything is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--tsv", type=Path, help="text to use instead of fetching one")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so long")
    parser.add_argument(
        "--record", action="store_true", help=f"append to {RESULTS.name}, picture in docs/"
    )
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    text = fetch_text(CACHE, args.tsv)
    if not (args.out / "data" / "vocab.model").exists():
        write_text(text, args.out)
        run_ds_seq("prepare", settings(args.out, args.only[0]), args.out / "prepare.log")
    stop = time.monotonic() + 60 * args.minutes
    for kind in args.only:
        if is_trained(args.out / kind):
            continue
        left = (stop - time.monotonic()) / 60
        if left > 0:
            options = [*settings(args.out, kind), f"train.max_hours={left / 60}", "--resume"]
            run_ds_seq("train", options, args.out / f"{kind}.log")
        if not is_trained(args.out / kind):
            print(f"{kind} is not finished; run the same command again")
            return 0
    torch.set_num_threads(1)
    picture = PICTURE if args.record else args.out / PICTURE.name
    updates = read_yaml(CONFIG).data["train"]["max_updates"]
    body = (
        f"{report(measure(args.out, text, args.only), picture)}\n\nPerplexity per target token of "
        "held-out reference translations, teacher-forced; the same sentences at each length. "
        f"{updates} updates on texts of at most {TRAINED} tokens, one seed. `rotary, linear` and "
        "so on is the rotary model with scaled angles, by the factor of the length, without "
        f"further training.\n\n![Perplexity over length](../docs/{PICTURE.name})"
    )
    return finish("Texts longer than those of the training", body, [], args.record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
