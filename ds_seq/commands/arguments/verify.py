"""The arguments of `ds-seq verify`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.parser import CommandParser, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq verify`."""
    return named_parser("verify")


def named_parser(name: str) -> CommandParser:
    """Return the parser under one of the names of the command."""
    parser = command_parser(
        name,
        "Compare all files of a run, a checkpoint, an export, a data folder or a teacher cache "
        "with the checksums written with them. Exit code 2 if anything is damaged or missing.",
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="folder, or a file made by export"
    )
    return parser
