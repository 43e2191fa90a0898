"""The arguments of `ds-seq verify-data`, which are those of `ds-seq verify`."""

from __future__ import annotations

from ds_seq.commands.arguments import verify
from ds_seq.commands.parser import CommandParser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq verify-data`."""
    return verify.named_parser("verify-data")
