"""torchrun's elastic agents: a run continues with more workers, and after a crash."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.system.commands import Running, script, started
from tests.system.runs import NO_VALIDATION, TINY, Lab, checkpoints, losses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STARTS = re.compile(r"updates per epoch; (\d) rank")
# torch 2.13: a store that agents share between restarts keeps a new agent from joining
OWN_STORES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def _worlds(run: Path) -> list[int]:
    """Number of ranks of each start of a run."""
    log = run / "train.log"
    return [int(size) for size in STARTS.findall(log.read_text())] if log.exists() else []


def test_a_run_goes_on_with_another_world(lab: Lab, tmp_path: Path) -> None:
    """One agent; two; a worker is killed. No update is missing."""
    run = tmp_path / "run"
    agent = [
        "torchrun", "--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}",
        "--rdzv-conf", "last_call_timeout=2,keep_alive_interval=2,keep_alive_max_attempt=2",
        script("train"), lab.moe, *TINY, *NO_VALIDATION, "train.expert_parallel=1",
        "train.max_updates=100000", "train.save_every=50", "train.log_every=1",
        f"run_dir={run}", "--resume",
    ]  # fmt: skip
    with ExitStack() as stack:

        def start() -> Running:
            return stack.enter_context(started(agent, OWN_STORES))

        first = start()
        first.wait_until(lambda: bool(checkpoints(run)), 150)
        second = start()
        first.wait_until(_is(run, [1, 2]), 150)
        _wait_for_updates(first, run)
        (worker,) = second.workers("train.py")
        worker.kill()
        first.wait_until(_is(run, [1, 2, 2]), 150)
        _wait_for_updates(first, run)
        found = losses(run)
    assert list(found) == list(range(1, len(found) + 1))


def _is(run: Path, worlds: list[int]) -> Callable[[], bool]:
    return lambda: _worlds(run) == worlds


def _wait_for_updates(agent: Running, run: Path) -> None:
    before = max(losses(run))
    agent.wait_until(lambda: max(losses(run)) > before + 60, 150)
