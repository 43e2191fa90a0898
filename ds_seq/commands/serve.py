"""The command `ds-seq serve`: translations over HTTP, and a page to look at them.

ds-seq serve runs/x
ds-seq serve best=runs/x last=runs/x@last both=runs/x,runs/y --port 8080
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ds_seq import distributed
from ds_seq.commands.arguments.serve import USUAL_QUEUE, ServerQueue, build_parser
from ds_seq.commands.options import check_expert_parallel, chosen_device, search_settings
from ds_seq.config.generation import GenerationConfig
from ds_seq.errors import UserError
from ds_seq.generation.workers import default_workers
from ds_seq.plugins import trusting
from ds_seq.runs.card import ModelCard
from ds_seq.runs.open import load_packed, open_run, parse_device
from ds_seq.serving.installed import require_packages

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ds_seq.serving.gate import Doorkeeper
    from ds_seq.serving.models import ServedModel
    from ds_seq.serving.service import Service


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


@dataclass(frozen=True)
class ServerApp:
    """An application with models that answer requests.

    Attributes:
        app: the application, for uvicorn or another server of ASGI.
        service: models, limits and figures behind it.
        doorkeeper: refuses new requests once `is_closing` is set.
    """

    app: FastAPI
    service: Service
    doorkeeper: Doorkeeper

    def close(self) -> None:
        """Compute what waits, and end the threads of the batches."""
        self.service.batcher.close()


def build_server(
    *runs: str | Path,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    checkpoint: str = "best",
    queue: ServerQueue = USUAL_QUEUE,
    trust: Sequence[str] = (),
) -> ServerApp:
    """Load models and build the application that `ds-seq serve` runs.

    Args:
        *runs: run folders or exports, as `[NAME=]RUN[@CHECKPOINT]`; with commas, an ensemble.
        device: device such as `cpu` or `cuda:1`; None: a GPU if there is one.
        dtype: number format; None: as in training on a GPU, fp32 on a CPU; `int8` on a CPU.
        checkpoint: of the runs that name none.
        queue: limits and sizes.
        trust: names of code from outside ds_seq (`package.module:Name`) that may run if a model
            names it.

    Raises:
        UserError: a model does not exist, two have one name, or a package of `ds_seq[serve]` is
            missing.
    """
    require_packages("ds_seq.build_server")
    place = distributed.World().device if device is None else parse_device(str(device))
    with trusting(trust):
        models = _models(
            list(map(str, runs)), checkpoint, dtype, place, lambda card: card.generation, queue
        )
    return _application(models, place, queue)


def _models(
    runs: Sequence[str],
    checkpoint: str,
    dtype: str | None,
    device: torch.device,
    settings_of: Callable[[ModelCard], GenerationConfig],
    queue: ServerQueue,
) -> list[ServedModel]:
    """Load the models that arguments name."""
    from ds_seq.serving.models import ServedModel

    if not runs:
        raise UserError("runs: there is no model to serve; give a run folder or an export")
    models: dict[str, ServedModel] = {}
    for text in runs:
        given, members = read_name(text)
        loaded = [load_packed(path, name or checkpoint, dtype, device) for path, name in members]
        name = given or "+".join(run.card.name for run in loaded)
        if name in models:
            raise UserError(
                f"{text}: there is a model {name} already; name both of them: NAME={text}"
            )
        settings = settings_of(loaded[0].card)
        models[name] = ServedModel(name, loaded, settings, device, queue.most_beam)
    return list(models.values())


def _application(
    models: Sequence[ServedModel], device: torch.device, queue: ServerQueue
) -> ServerApp:
    from ds_seq.serving.app import build_app
    from ds_seq.serving.batcher import Batcher
    from ds_seq.serving.figures import Figures
    from ds_seq.serving.gate import Doorkeeper
    from ds_seq.serving.service import Limits, Service

    figures, doorkeeper = Figures(), Doorkeeper()
    workers = queue.workers or default_workers(device)
    batcher = Batcher(workers, queue.wait_milliseconds / 1000, figures.batch)
    limits = Limits(queue.request_bytes, queue.lines, queue.seconds)
    figures.follow(lambda: batcher.num_waiting, lambda: doorkeeper.in_flight)
    service = Service(models, batcher, limits, figures)
    return ServerApp(build_app(service, doorkeeper), service, doorkeeper)


def _serve(args: argparse.Namespace, device: torch.device) -> None:
    """Load the models and serve them."""
    from ds_seq.serving.server import listen, serve

    listening = listen(args.host, args.port)  # before what takes time
    distributed.keep_few_kernels(has_experts=_has_experts(args.runs, args.checkpoint))
    queue = ServerQueue(
        args.queue, args.request_bytes, args.time_limit, args.wait, args.most_beam, args.workers
    )
    models = _models(
        args.runs,
        args.checkpoint,
        args.dtype,
        device,
        lambda card: search_settings(card, args),
        queue,
    )
    server = _application(models, device, queue)
    try:
        serve(server.app, server.doorkeeper, listening, args.time_limit)
    finally:
        server.close()


def _has_experts(runs: Sequence[str], checkpoint: str) -> bool:
    """Return whether one of the models has experts; reads no weights."""
    members = [member for text in runs for member in read_name(text)[1]]
    stored = (open_run(path, name or checkpoint) for path, name in members)
    return any(each.model_config.moe is not None for each in stored)


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
