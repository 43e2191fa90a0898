"""`ds-seq prepare`: raw text -> clean text -> vocabulary -> shards, by `ds_seq.tasks.prepare`."""

from __future__ import annotations

from collections.abc import Sequence

from ds_seq.commands.arguments.prepare import build_parser
from ds_seq.config.load import load_experiment
from ds_seq.config.outside import PREPARING
from ds_seq.data.mpi import team
from ds_seq.environment import keep_freed_memory
from ds_seq.tasks.prepare import prepare


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq prepare`, with all ranks under `mpirun`; return the exit code."""
    keep_freed_memory()
    with team() as is_first:
        return _prepare(argv) if is_first else 0


def _prepare(argv: Sequence[str]) -> int:
    arguments = build_parser().parse_intermixed_args(argv)
    config = load_experiment(arguments.experiment, arguments.overrides, PREPARING)
    prepare(config, arguments.force)
    return 0
