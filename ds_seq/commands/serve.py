"""The command `ds-seq serve`: translations over HTTP, and a page to look at them.

ds-seq serve runs/x
ds-seq serve best=runs/x last=runs/x@last both=runs/x,runs/y --port 8080
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ds_seq import distributed
from ds_seq.commands.arguments.serve import build_parser
from ds_seq.commands.options import check_expert_parallel, chosen_device, search_settings
from ds_seq.errors import UserError
from ds_seq.generation.workers import default_workers
from ds_seq.runs.open import load_packed
from ds_seq.serving.installed import require_packages


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq serve`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    world = distributed.discover(os.environ)
    if world.size > 1:
        raise UserError(f"{world.size} processes cannot share one port; start a single one")
    check_expert_parallel(args.expert_parallel, world.size)
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: at least 1 is needed")
    require_packages("ds-seq serve")
    distributed.keep_freed_memory()
    device = chosen_device(args, world)
    _serve(args, device)
    return 0


def _serve(args: argparse.Namespace, device: torch.device) -> None:
    """Load the models and serve them."""
    from ds_seq.serving.app import build_app
    from ds_seq.serving.batcher import Batcher
    from ds_seq.serving.figures import Figures
    from ds_seq.serving.gate import Doorkeeper
    from ds_seq.serving.models import ServedModel
    from ds_seq.serving.server import listen, serve
    from ds_seq.serving.service import Limits, Service

    listening = listen(args.host, args.port)  # before what takes time
    models: dict[str, ServedModel] = {}
    for text in args.runs:
        given, members = read_name(text)
        runs = [
            load_packed(path, checkpoint or args.checkpoint, args.dtype, device)
            for path, checkpoint in members
        ]
        name = given or "+".join(run.card.name for run in runs)
        if name in models:
            raise UserError(
                f"{text}: there is a model {name} already; name both of them: NAME={text}"
            )
        settings = search_settings(runs[0].card, args)
        models[name] = ServedModel(name, runs, settings, device, args.most_beam)
    figures, doorkeeper = Figures(), Doorkeeper()
    workers = args.workers or default_workers(device)
    batcher = Batcher(workers, args.wait / 1000, figures.batch)
    limits = Limits(args.request_bytes, args.queue, args.time_limit)
    figures.follow(lambda: batcher.num_waiting, lambda: doorkeeper.in_flight)
    service = Service(list(models.values()), batcher, limits, figures)
    try:
        serve(build_app(service, doorkeeper), doorkeeper, listening, args.time_limit)
    finally:
        batcher.close()


def read_name(text: str) -> tuple[str | None, list[tuple[str, str | None]]]:
    """Read what an argument says about a model: `[NAME=]RUN[@CHECKPOINT][,RUN...]`.

    A path that exists is taken as it is, whatever signs it has.

    Args:
        text: the argument.

    Returns:
        The name, or None; and each model's path and checkpoint, or None.

    Raises:
        UserError: a part is empty.
    """
    if Path(text).exists():
        return None, [(text, None)]
    name, equals, rest = text.partition("=")
    if not equals:
        name, rest = "", text
    members = []
    for member in rest.split(","):
        path, _, checkpoint = (member, "", "") if Path(member).exists() else member.partition("@")
        if not path or (equals and not name):
            raise UserError(f"{text}: should be [NAME=]RUN[@CHECKPOINT][,RUN[@CHECKPOINT]...]")
        members.append((path, checkpoint or None))
    return name or None, members
