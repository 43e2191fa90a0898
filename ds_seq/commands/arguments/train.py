"""The arguments of `ds-seq train`."""

from __future__ import annotations

from ds_seq.commands.arguments.shared import add_local_rank
from ds_seq.commands.parser import CommandParser, Number, add_overrides, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq train`."""
    parser = command_parser(
        "train",
        "Train a model in one process, or in all processes that a launcher starts.",
    )
    parser.add_argument("experiment", help="experiment file (YAML)")
    add_overrides(parser, "replace single settings")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="resume from the run's newest checkpoint that is not damaged; start from scratch if "
        "there is none",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="NAME",
        help="with --resume, resume from this checkpoint: best, last, a name or a path; later ones "
        "are kept under other names",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete an earlier run of this name"
    )
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="resume although this option, or one of this section, differs from the run so far in "
        "a way that is refused, such as model.num_heads; data.train: the shards; repeatable",
    )
    parser.add_argument(
        "--signal-exit-code",
        type=Number(0, 255),
        default=0,
        metavar="N",
        help="exit code of a run that a signal has stopped before its end, after it has saved a "
        "checkpoint (default: 0); a job script knows from it that the run is not finished",
    )
    parser.add_argument(
        "--profile",
        metavar="FROM:TO",
        help="trace these updates, at most 20, with torch's profiler: a trace for Chrome and a "
        "table of operators per rank, in profile/ in the run folder; short for train.profile",
    )
    add_local_rank(parser)
    return parser
