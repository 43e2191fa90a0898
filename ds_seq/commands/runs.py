"""The command `ds-seq runs`: folders -> a table of the runs in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from ds_seq.commands.arguments.runs import build_parser
from ds_seq.errors import UserError
from ds_seq.reports.run_state import RunState, find_runs, read_settings, read_state
from ds_seq.reports.run_table import differences, run_table, sorted_runs


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq runs`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    found = find_runs(args.folders)
    if args.name is not None:
        found = [(name, run) for name, run in found if fnmatchcase(name, args.name)]
        if not found:
            raise UserError(f"--name {args.name}: no run has such a name")
    runs = [read_state(name, folder) for name, folder in found]
    if args.state:
        runs = [run for run in runs if run.state in args.state]
    runs = sorted_runs(runs, args.sort, args.descending)
    settings = {run.name: read_settings(run.folder) for run in runs} if args.diff else {}
    changed = differences(settings)
    if args.json:
        print(json.dumps([_record(run, changed) for run in runs], indent=1))
    else:
        print(run_table(runs, changed))
    return 0


def _record(run: RunState, changed: dict[str, dict[str, str]]) -> dict[str, Any]:
    record = {**asdict(run), "folder": str(run.folder)}
    if changed:
        record["settings"] = {key: v[run.name] for key, v in changed.items() if run.name in v}
    return record
