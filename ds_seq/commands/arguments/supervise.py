"""The arguments of `ds-seq supervise`, which stand before `--`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.activity import HANG_SECONDS
from ds_seq.commands.parser import CommandParser, Number, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq supervise`."""
    parser = command_parser(
        "supervise",
        "Run a command (train, generate, teacher-cache or pseudo-label, under any launcher), and "
        "start it again after a crash or a hang, from what it has saved. Nothing is repeated after "
        "a good end, a mistake, a divergence or a signal.",
        usage="ds-seq supervise [OPTION ...] -- COMMAND [ARGUMENT ...]",
        epilog="exit code: that of the command if it is not started again (0 done, 2 mistake, 3 "
        "diverged, 130 interrupted); 76 if --max-restarts have saved nothing new. The journal is "
        "supervise/journal.jsonl in the run folder, or OUTPUT.supervise/journal.jsonl.",
        reads_experiments=False,
    )
    add = parser.add_argument
    add(
        "--max-restarts",
        type=Number(0),
        default=3,
        metavar="N",
        help="give up after N restarts in a row that have saved nothing new (default: %(default)s)",
    )
    add(
        "--backoff",
        type=Number(0, is_whole=False),
        default=5.0,
        metavar="S",
        help="seconds before a restart; twice as many after each one that has saved nothing new, "
        "up to 300 (default: %(default)g)",
    )
    add(
        "--hang-seconds",
        type=Number(1, is_whole=False),
        default=HANG_SECONDS,
        metavar="S",
        help="seconds without a sign of life after which a rank counts as lost if the command sets "
        "no limit of its own (default: %(default)g)",
    )
    add(
        "--run",
        type=Path,
        metavar="FOLDER",
        help="run folder of a training whose COMMAND is a script; it must resume by itself",
    )
    return parser
