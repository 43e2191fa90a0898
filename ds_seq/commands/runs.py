"""The command `ds-seq runs`: folders -> a table of the runs in them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from ds_seq.commands.arguments.runs import build_parser
from ds_seq.errors import UserError
from ds_seq.reports.run_state import RunState, find_runs, read_settings, read_state
from ds_seq.reports.run_table import differences, run_table, sorted_runs

_DRAIN = 5.0  # most seconds to wait for answers at the end


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq runs`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    if args.serve:
        _serve(args)
        return 0
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


def _serve(args: argparse.Namespace) -> None:
    """Serve a page about the runs until a signal ends it."""
    given = {"--json": args.json, "--diff": args.diff, "--state": args.state, "--name": args.name}
    if wrong := [option for option, value in given.items() if value]:
        raise UserError(f"--serve: has no use for {wrong[0]}; the page filters and compares itself")
    from ds_seq.serving.installed import require_packages

    require_packages("ds-seq runs --serve")
    from ds_seq.serving.gate import Doorkeeper
    from ds_seq.serving.runs.app import build_runs_app
    from ds_seq.serving.runs.board import Board
    from ds_seq.serving.server import listen, serve

    board = Board(args.folders)
    listening = listen(args.host, args.port)
    serve(build_runs_app(board), Doorkeeper(), listening, _DRAIN)


def _record(run: RunState, changed: dict[str, dict[str, str]]) -> dict[str, Any]:
    record = {**asdict(run), "folder": str(run.folder)}
    if changed:
        record["settings"] = {key: v[run.name] for key, v in changed.items() if run.name in v}
    return record
