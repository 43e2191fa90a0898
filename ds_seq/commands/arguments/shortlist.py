"""The arguments of `ds-seq shortlist`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.arguments.shared import RUN_HELP
from ds_seq.commands.parser import COUNT, CommandParser, Number, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq shortlist`."""
    parser = command_parser(
        "shortlist",
        "Find the likely translations of each source token in the pairs of a training (IBM model "
        "1), for `ds-seq generate --shortlist`, which scores these instead of the whole "
        "vocabulary.",
    )
    add = parser.add_argument
    add("run", help=RUN_HELP)
    add("--data", required=True, type=Path, help="folder of shards made with the run's vocabulary")
    add("--split", default="train", help="split of --data (default: %(default)s)")
    add("--out", required=True, type=Path, metavar="FILE", help="file to write")
    add("--targets", type=COUNT, default=100, metavar="N",
        help="most translations of a source token (default: %(default)s)")  # fmt: skip
    add("--frequent", type=Number(0), default=100, metavar="N",
        help="number of frequent target tokens that every source permits (default: "
        "%(default)s)")  # fmt: skip
    add("--pairs", type=COUNT, default=100_000, metavar="N",
        help="most pairs to use, spread evenly (default: %(default)s)")  # fmt: skip
    add("--iterations", type=COUNT, default=5, metavar="N",
        help="iterations over these pairs (default: %(default)s)")  # fmt: skip
    return parser
