"""The arguments of `ds-seq prune-experts`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.arguments.calibration import add_texts
from ds_seq.commands.arguments.shared import RUN_HELP
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
    add_texts(parser)
    return parser
