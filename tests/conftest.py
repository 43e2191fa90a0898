"""Settings of every test: one thread, no GPU unless requested, no launcher's environment."""

from __future__ import annotations

import gc
import os
import random
import shutil
import zlib
from collections.abc import Sequence
from typing import Any

import pytest

# A test inside a SLURM job or under a launcher must not take that job's ranks for its own.
_LAUNCHER_NAMES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"}
_LAUNCHER_PREFIXES = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "TORCHELASTIC_", "MASTER_", "CROSS_")

_MPIRUN_MISSING = pytest.StashKey[int]()
_DESELECTED = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Settle the environment before the first test module imports torch or deepspeed."""
    for name in list(os.environ):
        if name in _LAUNCHER_NAMES or name.startswith(_LAUNCHER_PREFIXES):
            del os.environ[name]
    _stay_on_one_core()
    # Many tests start 2 or 4 processes: one thread in each, here and in what they start.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if "not gpu" in config.option.markexpr:
        # The default suite is the same on every machine: it runs on the CPU even with a GPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["DS_ACCELERATOR"] = "cpu"

    import torch

    torch.set_num_threads(1)  # before any fork: a forked child cannot use its parent's threads


def _stay_on_one_core() -> None:
    """Keep a worker of pytest-xdist and all that it starts on one core, if there are enough.

    The ranks of a test wait for each other thousands of times. A wait for another core costs the
    kernel ten times as much as one for a process that is next on the same core.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
    cores = sorted(os.sched_getaffinity(0))
    if worker.startswith("gw") and count <= len(cores):
        number = int(worker.removeprefix("gw"))  # a worker that replaces one has the next number
        os.sched_setaffinity(0, {cores[number % len(cores)]})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests of mpirun where there is none; the summary says so."""
    if shutil.which("mpirun") is not None:
        return
    without = [item for item in items if item.get_closest_marker("mpirun") is None]
    missing = [item for item in items if item.get_closest_marker("mpirun") is not None]
    if missing:
        config.stash[_MPIRUN_MISSING] = len(missing)
        config.hook.pytest_deselected(items=missing)
        items[:] = without


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count them: of a worker's tests that are left out, pytest-xdist says nothing."""
    stash = items[0].config.stash
    stash[_DESELECTED] = stash.get(_DESELECTED, 0) + len(items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give each test random numbers of its own, the same in any order and in every run."""
    import torch

    seed = zlib.crc32(item.nodeid.encode())
    random.seed(seed)
    torch.manual_seed(seed)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare each later collection of garbage the walk through all modules and tests."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist reports deselected tests to the process that writes the summary."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        stash = session.config.stash
        output["ds_seq_left_out"] = (stash.get(_DESELECTED, 0), stash.get(_MPIRUN_MISSING, 0))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker collects all tests, so that the report of one is enough."""
    left_out = getattr(node, "workeroutput", {}).get("ds_seq_left_out")
    if left_out is not None:  # None: it crashed
        node.config.stash[_DESELECTED], node.config.stash[_MPIRUN_MISSING] = left_out


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say which tests this machine could not run."""
    left_out = config.stash.get(_DESELECTED, 0)
    if left_out and "deselected" not in terminalreporter.stats:
        terminalreporter.write_line(f"{left_out} deselected by -m, -k or a missing mpirun")
    count = config.stash.get(_MPIRUN_MISSING, 0)
    if count:
        terminalreporter.write_line(
            f"NOT RUN: {count} test(s) of the mpirun launch, because mpirun is not installed "
            "(Debian, Ubuntu: apt-get install openmpi-bin)",
            yellow=True,
        )
