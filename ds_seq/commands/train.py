"""The command `ds-seq train`: shards -> run folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from ds_seq import distributed
from ds_seq.commands.arguments.train import build_parser
from ds_seq.config.load import load_experiment
from ds_seq.config.outside import TRAINING
from ds_seq.reports.metrics import load_table, metric_lines
from ds_seq.training.run import TrainingResult, run_training


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq train`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    overrides = list(args.overrides)
    if args.profile is not None:
        overrides.append(f"train.profile={json.dumps(args.profile)}")
    try:
        result = run_training(
            lambda: load_experiment(args.experiment, overrides, TRAINING),
            resume=args.resume,
            overwrite=args.overwrite,
            checkpoint=args.checkpoint,
            allow_changes=args.allow_change,
        )
        is_first = distributed.rank() == 0
        if is_first:
            _report(result)
    finally:
        distributed.shutdown()
    # Only the last rank to do something says so: launchers end all others when one has failed.
    is_stopped = is_first and result.reason == "signal"
    return args.signal_exit_code if is_stopped else 0


def _report(result: TrainingResult) -> None:
    if result.update and result.figures:
        print(load_table(result.figures, result.layer_names) or "", file=sys.stderr)
        for line in metric_lines(result.figures):
            print(line, file=sys.stderr)
    print(
        f"stopped at update {result.update} ({result.reason}); run folder {result.folder}",
        file=sys.stderr,
    )
