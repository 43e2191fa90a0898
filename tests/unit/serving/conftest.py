"""A server of two small trained models, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient

from ds_seq.generation.build import changed_settings
from ds_seq.runs.open import load_packed
from ds_seq.serving.app import build_app
from ds_seq.serving.batcher import Batcher
from ds_seq.serving.figures import Figures
from ds_seq.serving.gate import Doorkeeper
from ds_seq.serving.models import ServedModel
from ds_seq.serving.service import Limits, Service

RUNS = Path(__file__).parents[2] / "compat" / "v0_1" / "runs"
CPU = torch.device("cpu")
Serve = Callable[..., TestClient]


def served_model(
    name: str, *paths: Path, device: torch.device = CPU, **settings: object
) -> ServedModel:
    runs = [load_packed(path, "best", "fp32", device) for path in paths]
    changed = changed_settings(runs[0].card.generation, settings, str)
    return ServedModel(name, runs, changed, device, most_beam=8)


@pytest.fixture(scope="session")
def models() -> list[ServedModel]:
    return [served_model(name, RUNS / name) for name in ("moe", "dense")]


@pytest.fixture
def serve(models: list[ServedModel]) -> Iterator[Serve]:
    """Start servers with certain limits; the doorkeeper is `client.app_state["doorkeeper"]`."""
    with ExitStack() as stack:

        def start(
            request_bytes: int = 100_000, queue: int = 100, seconds: float = 30.0, wait: float = 0.0
        ) -> TestClient:
            figures, doorkeeper = Figures(), Doorkeeper()
            batcher = Batcher(1, wait, figures.batch)
            stack.callback(batcher.close)
            figures.follow(lambda: batcher.num_waiting, lambda: doorkeeper.in_flight)
            service = Service(models, batcher, Limits(request_bytes, queue, seconds), figures)
            client = TestClient(build_app(service, doorkeeper), raise_server_exceptions=False)
            client.app_state["doorkeeper"] = doorkeeper
            return stack.enter_context(client)

        yield start
