"""The arguments of `ds-seq plot`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.parser import CommandParser, command_parser
from ds_seq.reports.curves import AXES
from ds_seq.reports.plots import DEFAULT_FIGURES


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq plot`."""
    parser = command_parser(
        "plot",
        "Draw the curves of one or more runs, also while they are being trained.",
        reads_experiments=False,
    )
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="RUN", help="run folder, or folder with runs")
    add("--out", type=Path, required=True, help="picture to write; ends in .png or .svg")
    defaults = ",".join(DEFAULT_FIGURES)
    add("--figures", metavar="NAME,...",
        help="figures of metrics.jsonl, a panel for each; those of validations begin with valid/, "
        f"and valid/best is the one that chooses checkpoints (default: {defaults})")  # fmt: skip
    add("--x", choices=AXES, default="updates", help="horizontal axis (default: updates)")
    return parser
