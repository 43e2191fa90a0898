"""The arguments of `ds-seq check`."""

from __future__ import annotations

from ds_seq.commands.parser import COUNT, CommandParser, add_overrides, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq check`."""
    parser = command_parser(
        "check",
        "Check an experiment file, and print its resolved settings, the model's size, tokens "
        "per update, memory, arithmetic and traffic between GPUs. Exit code 2 on a mistake, or if "
        "files are missing.",
        abbreviations=True,
    )
    add = parser.add_argument
    add("experiment", nargs="?", help="experiment file (YAML)")
    add_overrides(parser)
    add("--world-size", "--world", type=COUNT, metavar="N",
        help="check that the run fits N ranks, and print its costs on them")  # fmt: skip
    add("--gpu-memory", type=COUNT, metavar="GIB",
        help="memory of a GPU: print the largest batch that fits, and what to change if none "
        "does")  # fmt: skip
    add("--sentence-length", type=COUNT, metavar="N",
        help="tokens of a sentence for these costs (default: mean of the data, or 32)")  # fmt: skip
    add("--json", action="store_true", help="print only the costs and notes, as JSON")
    add("--elsewhere", action="store_true",
        help="the run is for another machine: do not look for the files that it reads")  # fmt: skip
    add("--options", action="store_true", help="print a table of all options instead")
    add("--names", action="store_true",
        help="print the names of other toolkits and ours instead")  # fmt: skip
    add("--json-schema", action="store_true",
        help="print a JSON schema for editors instead")  # fmt: skip
    return parser
