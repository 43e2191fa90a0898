#!/usr/bin/env python3
"""Normalize and filter parallel text, and report what was dropped.

Also on several nodes: `mpirun -n 8 python prepare_data/clean.py ...` writes the same files. A
command that was killed goes on where it was, on any number of processes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_seq.commands.arguments.text import add_text_arguments, files_of, section_of, texts_of
from ds_seq.config.clean import CleanConfig
from ds_seq.data.clean import clean_corpora
from ds_seq.data.cleaning.build import build_corpus
from ds_seq.data.mpi import team
from ds_seq.data.progress import Progress
from ds_seq.environment import keep_freed_memory
from ds_seq.errors import UserError, run_command
from ds_seq.files import check_not_input, remembering
from ds_seq.text.lines import PairPath, count_pairs

_NEED_LANGUAGES = ("min_alphabet_words", "min_alphabet_chars", "language_id", "pairs")


def main(argv: Sequence[str]) -> int:
    """Clean a pair of files, with all ranks under `mpirun`."""
    keep_freed_memory()
    with team() as is_first:
        return _clean(argv) if is_first else 0


def _clean(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    inputs = texts_of(arguments, "train", counts_invalid=True)
    config = _config(arguments)
    corpus = build_corpus(arguments.name, inputs, tuple(arguments.languages or ("", "")), config)
    output = PairPath(arguments.out_source, arguments.out_target)
    reports = [] if arguments.report is None else [arguments.report]
    reports += [report.with_suffix(".txt") for report in reports]
    read = [*files_of(inputs), *(score.path for score in corpus.scores)]
    for path in (*output, *reports):
        check_not_input(path, read)
    with remembering(), Progress("cleaning", count_pairs(inputs)) as progress:
        report = clean_corpora([corpus], output, arguments.workers, progress)
    if arguments.report is not None:
        report.write(arguments.report)
    print(f"kept {report.kept:,} of {report.total:,} pairs")
    for reason, number in report.dropped.items():
        print(f"    dropped {number:>12,}  {reason}")
    return 0


def _parser() -> argparse.ArgumentParser:
    default = CleanConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_text_arguments(parser)
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
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of data.clean, such as min_alphabet_chars=0.5; see configs/OPTIONS.md",
    )
    parser.add_argument(
        "--languages",
        nargs=2,
        metavar=("SOURCE", "TARGET"),
        help="language codes, such as en de, which some filters need",
    )
    parser.add_argument("--report", type=Path, help="file for the report in JSON; also as .txt")
    parser.add_argument("--name", default="train", help="name of the text in the report")
    parser.add_argument(
        "--workers", type=int, default=1, help="number of processes, without mpirun"
    )
    return parser


def _config(arguments: argparse.Namespace) -> CleanConfig:
    """Return the options of cleaning; those of `--set` win.

    Raises:
        UserError: options are invalid, one line for each.
    """
    values: dict[str, Any] = {
        "nfkc": arguments.nfkc,
        "fold_spaces": arguments.fold_spaces,
        "min_words": arguments.min_words,
        "max_words": arguments.max_words,
        "max_ratio": arguments.max_ratio,
        "drop_identical": not arguments.keep_identical,
        "drop_duplicates": not arguments.keep_duplicates,
    }
    default = CleanConfig()
    # what has not been given is left to a preset
    values = {key: value for key, value in values.items() if value != vars(default)[key]}
    config = section_of(CleanConfig, "--set", arguments.set, values)
    needing = [key for key in _NEED_LANGUAGES if vars(config)[key]]
    if needing and arguments.languages is None:
        raise UserError(f"{needing[0]}: give --languages SOURCE TARGET, such as --languages en de")
    return config


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
