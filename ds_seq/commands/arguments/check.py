"""The arguments of `ds-seq check`."""

from __future__ import annotations

from ds_seq.commands.parser import COUNT, CommandParser, add_overrides, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq check`."""
    parser = command_parser(
        "check",
        "Check an experiment file, and print its resolved settings, the size of the model, tokens "
        "per update and memory. Exit code 2 on a mistake, or if files are missing.",
        abbreviations=True,
    )
    add = parser.add_argument
    add("experiment", nargs="?", help="experiment file (YAML)")
    add_overrides(parser)
    add("--world-size", type=COUNT, metavar="N", help="also check that the run fits N ranks")
    add("--elsewhere", action="store_true",
        help="the run is for another machine: do not look for the files that it reads")  # fmt: skip
    add("--options", action="store_true", help="print a table of all options instead")
    add("--names", action="store_true",
        help="print the names of other toolkits and ours instead")  # fmt: skip
    add("--json-schema", action="store_true",
        help="print a JSON schema for editors instead")  # fmt: skip
    return parser
