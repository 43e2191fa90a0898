#!/usr/bin/env python3
"""Download the raw text of a published task, and print its sizes next to the published ones."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ds_seq.data.recipe import OverlapChoice, run
from ds_seq.data.recipes import RECIPES, raw_section, with_sums
from ds_seq.errors import run_command


def main(argv: Sequence[str]) -> int:
    """Make the files of a recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=list(RECIPES))
    parser.add_argument(
        "folder", type=Path, nargs="?", help="folder to write to (default: data/RECIPE/raw)"
    )
    parser.add_argument(
        "--mirror",
        default=os.environ.get("WMT_MIRROR"),
        help="server or local folder with the archives at the paths of their addresses (default: "
        "the environment variable WMT_MIRROR)",
    )
    choices = get_args(OverlapChoice)
    parser.add_argument(
        "--overlap",
        choices=choices,
        default=os.environ.get("OVERLAP", choices[0]),
        help="what to do about training pairs that are in a test set, too (default: the "
        f"environment variable OVERLAP, or {choices[0]})",
    )
    parser.add_argument(
        "--sums",
        type=Path,
        default=os.environ.get("WMT_SUMS"),
        metavar="FILE",
        help="checksums (`sha256sum`) of a mirror that has packed the archives anew, instead of "
        "the published ones (default: the environment variable WMT_SUMS)",
    )
    arguments = parser.parse_args(argv)
    if arguments.overlap not in choices:  # argparse does not check a default
        parser.error(f"OVERLAP={arguments.overlap}: should be one of {', '.join(choices)}")
    recipe = RECIPES[arguments.recipe]
    if arguments.sums is not None:
        recipe = with_sums(recipe, arguments.sums)
    folder = arguments.folder or Path("data") / recipe.name / "raw"
    sizes = run(recipe, folder, arguments.mirror, arguments.overlap)
    total = sum(sizes[corpus.name] for corpus in recipe.train)
    print(f"{'training together':<24}{total:>12,} pairs")
    if recipe.note:
        print(recipe.note)
    print(f"an experiment names this text so:\n{raw_section(recipe, folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
