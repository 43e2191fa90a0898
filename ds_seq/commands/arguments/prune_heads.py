"""The arguments of `ds-seq prune-heads`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.arguments.calibration import add_texts
from ds_seq.commands.arguments.shared import RUN_HELP
from ds_seq.commands.parser import CommandParser, Number, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq prune-heads`."""
    parser = command_parser(
        "prune-heads",
        "Keep the attention heads that matter most for the loss on a text, as a smaller model that "
        "translates and can be trained further. Prints the heads that each attention keeps, and "
        "BLEU before and after. Does not train.",
    )
    add = parser.add_argument
    add("run", type=Path, help=RUN_HELP)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--keep", type=Number(1), metavar="N",
        help="number of heads to keep in each attention")  # fmt: skip
    how.add_argument("--fraction", type=Number(0, is_whole=False), metavar="F",
        help="share of all heads of the model to cut out, below 1; each attention keeps one at "
        "least")  # fmt: skip
    add_texts(parser)
    return parser
