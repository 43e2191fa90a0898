"""`ds-seq verify`: check a run, a checkpoint, an export, a data folder or a teacher cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ds_seq.commands.parser import command_parser
from ds_seq.errors import UserError
from ds_seq.runs.verification import verify


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq verify`; return the exit code."""
    parser = command_parser(
        "verify",
        "Compare all files of a run, a checkpoint, an export, a data folder or a teacher cache "
        "with the checksums written with them. Exit code 2 if anything is damaged or missing.",
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="folder, or a file made by export"
    )
    problems = []
    for path in parser.parse_args(argv).paths:
        for finding in verify(path):
            if finding.is_sound:
                print(f"{finding.path}: ok ({finding.note})", flush=True)
            else:
                problems.append(finding.note)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return 0
