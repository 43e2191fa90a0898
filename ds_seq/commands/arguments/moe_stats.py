"""The arguments of `ds-seq moe-stats`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.arguments.shared import CHECKPOINT_HELP, RUN_HELP
from ds_seq.commands.parser import COUNT, CommandParser, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq moe-stats`."""
    parser = command_parser(
        "moe-stats",
        "Show how a trained model spreads tokens over its experts: share, dropped "
        "tokens, entropy, balance and losses of each layer, and of each language if the source "
        "begins with a tag.",
    )
    add = parser.add_argument
    add("run", help=RUN_HELP)
    add("--data", required=True, type=Path, help="folder of shards made with the run's vocabulary")
    add("--split", default="valid", help="split of --data (default: %(default)s)")
    add("--checkpoint", default="best", help=CHECKPOINT_HELP)
    add("--out", type=Path, help="also write a heat map to this PNG file")
    add("--json", action="store_true", help="print JSON instead of tables")
    add(
        "--max-batches",
        type=COUNT,
        metavar="N",
        help="at most N batches per language (default: all)",
    )
    return parser
