"""The arguments of commands that cut out what a text does not need."""

from __future__ import annotations

import argparse
from pathlib import Path

from ds_seq.commands.arguments.shared import CHECKPOINT_HELP, EXPORT_DTYPES


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
    add("--input", metavar="FILE", help="raw text to score on (default: data.raw.test)")
    add("--reference", metavar="FILE", help="its reference")
