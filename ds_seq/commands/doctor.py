"""The command `ds-seq doctor`: checks machines, network and installation before a training."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from ds_seq import distributed
from ds_seq.commands.arguments.doctor import build_parser
from ds_seq.config.load import load_experiment
from ds_seq.distributed import World
from ds_seq.distributed.roll_call import PATIENCE
from ds_seq.errors import UserError
from ds_seq.names import Precision
from ds_seq.reports.doctor.findings import Finding, merged, records, table, worst
from ds_seq.reports.doctor.host import host_findings
from ds_seq.reports.doctor.ranks import NoAnswer, RankChecks

EXIT_FAILED = 1


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq doctor`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    folder, precision = _wanted(args)
    world = distributed.discover(os.environ)
    os.environ.setdefault(PATIENCE, str(args.patience))
    findings = list(host_findings(world, folder, precision))
    try:
        of_ranks = _meet(world, findings, args.patience)
    finally:
        with suppress(RuntimeError):  # of a group whose ranks have gone
            distributed.shutdown()
    if not world.is_first:
        return 0
    rows = merged(of_ranks)
    status = worst(rows)
    if args.json:
        report = {"status": status, "ranks": world.size, "findings": records(rows)}
        print(json.dumps(report, indent=1))
    else:
        print(table(rows, world.size), flush=True)
    return EXIT_FAILED if status == "FAIL" else 0


def _wanted(args: argparse.Namespace) -> tuple[Path, Precision | None]:
    """Return the folder and the number format to check."""
    if args.experiment is None:
        return args.folder or Path(), None
    config = load_experiment(args.experiment, args.overrides)
    return args.folder or config.run_folder, config.train.precision


def _meet(world: World, findings: list[Finding], patience: float) -> dict[int, Sequence[Finding]]:
    """Add what ranks find together; return the findings of each rank that has answered."""
    if world.size == 1:
        return {0: findings}
    try:
        distributed.init(world)
        distributed.quiet_deepspeed()
    except UserError as error:
        text = str(error).removeprefix(f"rank {world.rank}: ")
        fix = "start all ranks with this command; look for messages of those that are missing"
        return {world.rank: [*findings, Finding("ranks", "FAIL", text, fix)]}
    store = distributed.meeting_store()
    assert store is not None
    checks = RankChecks(world, store, patience, findings)
    together: list[Finding] = []
    try:
        checks.meet("the first step")
        text = f"all {world.size} have met at {world.address}:{os.environ['MASTER_PORT']}"
        together.append(Finding("ranks", "ok", text))
        together.append(checks.clocks())
        for backend in dict.fromkeys(("gloo", dist.get_backend())):
            device = world.device if backend == "nccl" else torch.device("cpu")
            together += checks.collectives(backend, device)
        checks.meet("the end")
    except NoAnswer as silent:
        fix = "look at its host and its messages: it hangs, has died, or cannot reach the others"
        together.append(Finding("ranks", "FAIL", str(silent), fix))
    if not world.is_first:
        return {}
    return {rank: [*of_rank, *together] for rank, of_rank in checks.answers().items()}
