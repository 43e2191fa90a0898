"""The command `ds-seq plot`: run folders -> a picture of their curves."""

from __future__ import annotations

from collections.abc import Sequence

from ds_seq.commands.arguments.plot import build_parser
from ds_seq.errors import UserError
from ds_seq.reports.curves import read_curves
from ds_seq.reports.plots import DEFAULT_FIGURES, check_figures, draw_curves
from ds_seq.reports.run_state import find_runs

_SUFFIXES = (".png", ".svg")


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq plot`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    if args.out.suffix.lower() not in _SUFFIXES:
        raise UserError(f"--out {args.out}: give a name that ends in {' or '.join(_SUFFIXES)}")
    chosen = DEFAULT_FIGURES if args.figures is None else args.figures.split(",")
    figures = list(dict.fromkeys(filter(None, map(str.strip, chosen))))
    if not figures:
        raise UserError("--figures: is empty; give names of figures, such as loss,valid/bleu")
    runs = [read_curves(name, folder) for name, folder in find_runs(args.folders)]
    if args.figures is not None:
        check_figures(runs, figures)
    draw_curves(runs, figures, args.x, args.out)
    return 0
