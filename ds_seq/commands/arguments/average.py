"""The arguments of `ds-seq average`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.arguments.shared import EXPORT_DTYPES
from ds_seq.commands.parser import COUNT, CommandParser, command_parser
from ds_seq.names import EXPORT_SUFFIX


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq average`."""
    parser = command_parser(
        "average",
        "Write the mean of several checkpoints as one model, as `ds-seq export` does. "
        "They must have the same model section and vocabulary. Neither trains nor evaluates.",
    )
    add = parser.add_argument
    add("models", nargs="+", type=Path, metavar="RUN | FILES",
        help="a run folder, with --last or --best; or checkpoints, exports, and run folders (their "
        "best checkpoint is used); with :raw at the end, no average of train.ema")  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--last", type=COUNT, metavar="N", help="the N most recent checkpoints of RUN"
    )
    which.add_argument("--best", type=COUNT, metavar="N", help="the N best checkpoints of RUN")
    add("--until", type=COUNT, metavar="UPDATE", help="only checkpoints up to UPDATE")
    add("--out", type=Path, required=True,
        help=f"new file (NAME{EXPORT_SUFFIX}) or folder to write")  # fmt: skip
    add("--dtype", choices=EXPORT_DTYPES, default="fp32", help="precision on disk")
    return parser
