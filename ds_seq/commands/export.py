"""`ds-seq export`: write one weights file for use on any machine, without DeepSpeed."""

from __future__ import annotations

from collections.abc import Sequence

from ds_seq.commands.arguments.export import build_parser
from ds_seq.runs.export import export


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq export`; return the exit code."""
    options = build_parser().parse_intermixed_args(argv)
    path = export(options.run, options.out, options.checkpoint, options.dtype, options.format)
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
    return 0
