"""The parser of a command; free of torch, for `ds-seq check`."""

from __future__ import annotations

import argparse

CHECKPOINT_HELP = "best, last, a name or a path (default: %(default)s)"


def command_parser(
    name: str,
    description: str,
    *,
    usage: str | None = None,
    epilog: str | None = None,
    abbreviations: bool = False,
) -> argparse.ArgumentParser:
    """A parser without arguments.

    Args:
        name: of the command.
        description: what ``--help`` says on top.
        usage: what it says of the order of arguments; None: what argparse makes of them.
        epilog: what it says below.
        abbreviations: whether options may be shortened.
    """
    return argparse.ArgumentParser(
        prog=f"ds-seq {name}",
        usage=usage,
        description=description,
        epilog=epilog,
        allow_abbrev=abbreviations,
    )


def add_overrides(parser: argparse.ArgumentParser, help: str = "dotted overrides") -> None:
    """The overrides that follow an experiment file."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=help)
