"""`ds-seq verify`: check a run, a checkpoint, an export, a data folder or a teacher cache."""

from __future__ import annotations

from collections.abc import Sequence

from ds_seq.commands.arguments.verify import build_parser
from ds_seq.errors import UserError
from ds_seq.runs.verification import verify


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq verify`; return the exit code."""
    problems = []
    for path in build_parser().parse_intermixed_args(argv).paths:
        for finding in verify(path):
            if finding.is_sound:
                print(f"{finding.path}: ok ({finding.note})", flush=True)
            else:
                problems.append(finding.note)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return 0
