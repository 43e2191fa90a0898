"""The arguments of `ds-seq prune-experts`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.arguments.shared import CHECKPOINT_HELP, EXPORT_DTYPES, RUN_HELP
from ds_seq.commands.parser import CommandParser, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq prune-experts`."""
    parser = command_parser(
        "prune-experts",
        "Keep the most important experts for a text, as a smaller model for that kind of "
        "text. Prints the experts that each layer keeps, and BLEU before and after. Does not "
        "train.",
    )
    add = parser.add_argument
    add("run", type=Path, help=RUN_HELP)
    add("--keep", required=True, metavar="N",
        help="number of experts to keep per layer, or one for each layer: 4,2,4")  # fmt: skip
    add(
        "--calibration",
        required=True,
        metavar="FILE",
        help="raw source text to measure importance on",
    )
    add("--calibration-target", metavar="FILE",
        help="its translation (default: the model's own translation)")  # fmt: skip
    add("--out", type=Path, required=True,
        help="new file (NAME.safetensors) or folder to write, as `ds-seq export` does")  # fmt: skip
    add("--checkpoint", default="best", help=CHECKPOINT_HELP)
    add("--dtype", choices=EXPORT_DTYPES, default="fp32", help="precision on disk")
    add("--input", metavar="FILE", help="raw text to score on (default: data.raw.test)")
    add("--reference", metavar="FILE", help="its reference")
    return parser
