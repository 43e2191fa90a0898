"""`ds-seq prepare`: raw text -> clean text -> vocabulary -> shards, by `ds_seq.tasks.prepare`."""

from __future__ import annotations

from collections.abc import Sequence

from ds_seq.commands.parser import add_overrides, command_parser
from ds_seq.config.load import load_experiment
from ds_seq.config.outside import TOKENIZING
from ds_seq.data.mpi import team
from ds_seq.tasks.prepare import prepare


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq prepare`, with all ranks under `mpirun`; return the exit code."""
    with team() as is_first:
        return _prepare(argv) if is_first else 0


def _prepare(argv: Sequence[str]) -> int:
    parser = command_parser(
        "prepare",
        "Clean raw parallel text, train a vocabulary on it and binarize it.",
        abbreviations=True,
    )
    parser.add_argument("experiment", help="experiment file (YAML)")
    add_overrides(parser)
    parser.add_argument("--force", action="store_true", help="redo all steps, even if up to date")
    arguments = parser.parse_intermixed_args(argv)
    config = load_experiment(arguments.experiment, arguments.overrides, TOKENIZING)
    prepare(config, arguments.force)
    return 0
