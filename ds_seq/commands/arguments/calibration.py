"""The arguments of commands that cut out what a text does not need."""

from __future__ import annotations

import argparse
from pathlib import Path

from ds_seq.commands.arguments.shared import CHECKPOINT_HELP, EXPORT_DTYPES
from ds_seq.commands.parser import COUNT

MEASURED_TOKENS = 100_000


def add_texts(parser: argparse.ArgumentParser) -> None:
    """Add the texts to measure and to score on, the checkpoint and the output."""
    add = parser.add_argument
    add(
        "--calibration",
        required=True,
        metavar="FILE",
        help="raw source text to measure importance on",
    )
    add("--calibration-target", metavar="FILE",
        help="its translation (default: the model's own translation)")  # fmt: skip
    add("--out", type=Path, required=True,
        help="new file (NAME.safetensors) or folder to write, as `ds-seq export` does")  # fmt: skip
    add("--checkpoint", default="best", help=CHECKPOINT_HELP)
    add("--dtype", choices=EXPORT_DTYPES, default="fp32", help="precision on disk")
    add_scored(parser, "default: data.raw.test")


def add_scored(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the text to score on; `default` says what is scored without it."""
    parser.add_argument("--input", metavar="FILE", help=f"raw text to score on ({default})")
    parser.add_argument("--reference", metavar="FILE", help="its reference")


def add_measured(parser: argparse.ArgumentParser, option: str, default: str = "") -> None:
    """Add the shards on which to measure experts, for an option that merges them."""
    add = parser.add_argument
    add("--data", type=Path, metavar="SHARDS",
        help=f"for {option}: folder of shards made with the run's vocabulary{default}")  # fmt: skip
    add("--split", default="train", help="split of --data (default: %(default)s)")
    add("--max-tokens-measured", type=COUNT, default=MEASURED_TOKENS, metavar="N",
        help="measure on about N target tokens, evenly spread (default: %(default)s)")  # fmt: skip
