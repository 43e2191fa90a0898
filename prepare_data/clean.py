#!/usr/bin/env python3
"""Normalize and filter parallel text, and report what was dropped."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ds_seq.config.clean import CleanConfig
from ds_seq.data.clean import CleanOptions, clean
from ds_seq.data.progress import Progress
from ds_seq.errors import run_command
from ds_seq.files import check_not_input
from ds_seq.text.lines import PairPath, count_pairs
from ds_seq.text.normalize import Normalizer


def main(argv: Sequence[str]) -> int:
    """Clean a pair of files."""
    default = CleanConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for name in ("source", "target"):
        parser.add_argument(name, type=Path, help=f"{name} text, also .gz, .bz2, .xz or .zst")
    for name in ("out-source", "out-target"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="file to write")
    parser.add_argument("--nfkc", action="store_true", help="apply Unicode's NFKC")
    parser.add_argument(
        "--fold-spaces",
        action="store_true",
        help="replace no-break and other special spaces, remove soft hyphens",
    )
    parser.add_argument("--min-words", type=int, default=default.min_words, help="minimum per side")
    parser.add_argument("--max-words", type=int, default=default.max_words, help="maximum per side")
    parser.add_argument(
        "--max-ratio",
        type=float,
        default=default.max_ratio,
        help="maximum length ratio of the sides",
    )
    parser.add_argument("--keep-identical", action="store_true", help="keep pairs of equal sides")
    parser.add_argument("--keep-duplicates", action="store_true", help="keep repeated pairs")
    parser.add_argument("--workers", type=int, default=1, help="number of processes")
    arguments = parser.parse_args(argv)
    inputs = [PairPath(arguments.source, arguments.target)]
    options = CleanOptions(
        Normalizer(arguments.nfkc, arguments.fold_spaces),
        arguments.min_words,
        arguments.max_words,
        arguments.max_ratio,
        not arguments.keep_identical,
        not arguments.keep_duplicates,
    )
    output = PairPath(arguments.out_source, arguments.out_target)
    for path in output:
        check_not_input(path, inputs[0])
    with Progress("cleaning", count_pairs(inputs)) as progress:
        report = clean(inputs, output, options, arguments.workers, progress)
    print(f"kept {report.kept:,} of {report.total:,} pairs")
    for reason, number in report.dropped.items():
        print(f"    dropped {number:>12,}  {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
