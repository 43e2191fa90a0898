"""The command `ds-seq train`: shards -> run folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ds_seq import distributed
from ds_seq.commands.parser import add_overrides, command_parser
from ds_seq.config.load import load_experiment
from ds_seq.reports.metrics import load_table, metric_lines
from ds_seq.training.run import TrainingResult, run_training


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq train`; return the exit code."""
    args = _parser().parse_intermixed_args(argv)
    try:
        result = run_training(
            lambda: load_experiment(args.experiment, args.overrides),
            args.resume,
            args.overwrite,
            args.checkpoint,
        )
        if distributed.rank() == 0:
            _report(result)
    finally:
        distributed.shutdown()
    return 0


def _parser() -> argparse.ArgumentParser:
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
    # the deepspeed launcher adds it before all other arguments; the environment has it, too
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


def _report(result: TrainingResult) -> None:
    if result.update and result.figures:
        print(load_table(result.figures, result.layer_names) or "", file=sys.stderr)
        for line in metric_lines(result.figures):
            print(line, file=sys.stderr)
    print(
        f"stopped at update {result.update} ({result.reason}); run folder {result.folder}",
        file=sys.stderr,
    )
