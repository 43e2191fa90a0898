"""The arguments of `ds-seq doctor`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.arguments.shared import add_local_rank
from ds_seq.commands.parser import CommandParser, Number, add_overrides, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq doctor`."""
    parser = command_parser(
        "doctor",
        "Check what a training depends on: versions, devices, number formats, limits, disk, host "
        "names, and the network between all ranks. Exit code 1 if anything fails.",
        epilog="Under a launcher, in a job: srun ds-seq doctor; mpirun -n 8 ds-seq doctor; "
        "torchrun --nproc_per_node 8 -m ds_seq doctor; deepspeed --module ds_seq doctor.",
    )
    add = parser.add_argument
    add("experiment", nargs="?", help="experiment file: checks its run folder and precision, too")
    add_overrides(parser)
    add("--folder", type=Path, help="folder whose disk is checked (default: the run folder, or .)")
    add("--patience", type=Number(1, 3600), default=20, metavar="S",
        help="seconds to wait for a rank in each step (default: %(default)s)")  # fmt: skip
    add("--json", action="store_true", help="print JSON instead of a table")
    add_local_rank(parser)
    return parser
