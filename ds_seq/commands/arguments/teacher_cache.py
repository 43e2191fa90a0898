"""The arguments of `ds-seq teacher-cache`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.arguments.shared import RUN_HELP, add_hang_seconds, add_loading_arguments
from ds_seq.commands.parser import COUNT, CommandParser, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq teacher-cache`."""
    parser = command_parser(
        "teacher-cache",
        "Write a teacher's output for every target token, so that training with "
        "criterion.cache needs no teacher. An interrupted command resumes when it is run again.",
    )
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        metavar="RUN",
        help=f"{RUN_HELP}; the probabilities of several are averaged",
    )
    add("--data", required=True, type=Path, help="folder of shards made with their vocabulary")
    add(
        "--top-k",
        required=True,
        type=COUNT,
        metavar="K",
        help="number of most probable tokens to store",
    )
    add("--student", metavar="EXPERIMENT",
        help="experiment of the student, which says how long pairs are cut (data.long_pairs); "
        "default: as in the training of the teacher")  # fmt: skip
    add("--splits", nargs="+", help="splits to cache (default: train, and valid if it exists)")
    add(
        "--out",
        type=Path,
        help="folder of the cache (default: a new one in the folder of the shards)",
    )
    add(
        "--precision",
        choices=("fp16", "fp32"),
        default="fp16",
        help="number format of the stored log-probabilities (default: %(default)s)",
    )
    add(
        "--max-tokens", type=COUNT, help="maximum padded tokens per batch (default: as in training)"
    )
    add(
        "--part-tokens",
        type=COUNT,
        default=1 << 20,
        help="target tokens per part; an interruption loses at most one part per process "
        "(default: %(default)s)",
    )
    add_loading_arguments(parser)
    add_hang_seconds(parser)
    return parser
