"""The arguments of `ds-seq prepare`."""

from __future__ import annotations

from ds_seq.commands.parser import CommandParser, add_overrides, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq prepare`."""
    parser = command_parser(
        "prepare",
        "Clean raw parallel text, train a vocabulary on it and binarize it.",
        abbreviations=True,
    )
    parser.add_argument("experiment", help="experiment file (YAML)")
    add_overrides(parser)
    parser.add_argument("--force", action="store_true", help="redo all steps, even if up to date")
    return parser
