"""The arguments of `ds-seq init`."""

from __future__ import annotations

from ds_seq.commands.parser import CommandParser, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq init`."""
    parser = command_parser(
        "init",
        "Print a complete, commented experiment file for your own parallel text: line n of one "
        "file translates line n of the other. Save it: ds-seq init ... > my.yaml",
        reads_experiments=False,
    )
    add = parser.add_argument
    add("--source", nargs="+", required=True, metavar="FILE", help="training text, source side")
    add("--target", nargs="+", required=True, metavar="FILE", help="training text, target side")
    for split, about in (("valid", "validation"), ("test", "test")):
        for side in ("source", "target"):
            add(f"--{split}-{side}", nargs="+", default=[], metavar="FILE",
                help=f"{about} text, {side} side (default: none)")  # fmt: skip
    for side in ("source", "target"):
        add(f"--{side}-lang", metavar="CODE",
            help=f"language of the {side} (default: the end of the file name)")  # fmt: skip
    add("--name", help="name of the run (default: the languages, such as en-de)")
    add("--experts", type=int, default=0, metavar="N",
        help="experts in every second layer; 0: a dense model (default: %(default)s)")  # fmt: skip
    return parser
