"""The arguments of `ds-seq order`."""

from __future__ import annotations

from ds_seq.commands.parser import COUNT, CommandParser, add_overrides, command_parser

WORLDS = "1,2,3,5,8"


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq order`."""
    parser = command_parser(
        "order",
        "Print the pairs of each update, and check that they are the same on any number of ranks, "
        "also if training stops after any of the updates and resumes on another number. Exit code "
        "2 if not.",
    )
    parser.add_argument("experiment", help="experiment file (YAML)")
    add_overrides(parser)
    parser.add_argument(
        "--worlds", default=WORLDS, metavar="N,N", help="numbers of ranks (default: %(default)s)"
    )
    parser.add_argument(
        "--updates", type=COUNT, default=20, metavar="N",
        help="number of updates (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--ids", action="store_true", help="also print the numbers of the pairs of each update"
    )
    return parser
