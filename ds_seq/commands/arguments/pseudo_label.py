"""The arguments of `ds-seq pseudo-label`."""

from __future__ import annotations

from ds_seq.commands.arguments.shared import (
    add_hang_seconds,
    add_model_arguments,
    add_search_arguments,
)
from ds_seq.commands.parser import CommandParser, Number, command_parser
from ds_seq.names import FILTER_METRICS


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq pseudo-label`."""
    parser = command_parser(
        "pseudo-label",
        "Make a data folder whose targets are a teacher's translations. An interrupted "
        "command resumes when it is run again.",
    )
    add_model_arguments(parser)
    add_hang_seconds(parser)
    add = parser.add_argument
    add("--data", required=True, help="data folder with the shards to label")
    add("--out", required=True, help="new data folder")
    add("--student", metavar="EXPERIMENT",
        help="experiment of the student, if --data were prepared with another vocabulary than the "
        "teacher's: texts are encoded again in both directions")  # fmt: skip
    add("--split", default="train", help="split to label; the others are copied (default: train)")
    add("--n-best", type=int, default=1, metavar="N",
        help="hypotheses per source, each a separate pair (default: %(default)s)")  # fmt: skip
    add("--original", type=Number(0, is_whole=False), default=0.0, metavar="TIMES",
        help="also add all original pairs TIMES times; 0.5 = half (default: 0)")  # fmt: skip
    group = parser.add_argument_group("filters (a hypothesis must pass all)")
    group.add_argument("--min-score", type=Number(None, is_whole=False), metavar="X",
        help="minimum teacher score: log-probability / length ** length penalty")  # fmt: skip
    group.add_argument("--max-ratio", type=Number(1, is_whole=False), metavar="X",
        help="maximum ratio of token counts between the sides, in either direction")  # fmt: skip
    for name in FILTER_METRICS:
        group.add_argument(f"--min-{name}", type=Number(0, 100, is_whole=False), metavar="X",
            help=f"minimum sentence {name} against the reference, 0 to 100")  # fmt: skip
    group.add_argument("--best-metric", choices=FILTER_METRICS,
        help="keep only the one of the N best that is closest to the reference")  # fmt: skip
    add_search_arguments(parser)
    return parser
