"""The arguments of `ds-seq recipes`."""

from __future__ import annotations

from ds_seq.commands.parser import CommandParser, command_parser

ACTIONS = ("ls", "show", "cp")


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq recipes`."""
    parser = command_parser(
        "recipes",
        "List the experiments that come with ds_seq, show one with what to expect, or copy it.",
        usage="ds-seq recipes ls [WORD ...] | show NAME | cp NAME [DEST]   [--json]",
        epilog="figures are measured (benchmarks/RESULTS.md) or estimated; `show` says which, and "
        "from what",
        reads_experiments=False,
    )
    add = parser.add_argument
    add("action", nargs="?", choices=ACTIONS, default="ls",
        help="ls: list (default); show: facts and file; cp: copy")  # fmt: skip
    add("words", nargs="*", metavar="WORD",
        help="ls: only recipes in whose name, kind or summary all words occur; show and cp: the "
        "name; cp: then the file or folder to write (default: NAME.yaml)")  # fmt: skip
    add("--json", action="store_true", help="ls and show: print JSON")
    return parser
