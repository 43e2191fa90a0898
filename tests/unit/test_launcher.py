"""A rank whose launcher is killed ends, or is asked to; a process without a launcher goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from ds_seq.errors import EXIT_RANK_LOST

TIMEOUT = 30.0
# Starts a command with more variables, says its number, and ends when it is killed.
LAUNCHER = """
import os, subprocess, sys
mark, command = dict(word.split("=") for word in sys.argv[1].split()), sys.argv[2:]
process = subprocess.Popen(command, env={**os.environ, **mark})
process.wait()
"""
RANK = """
import os, sys, time
from pathlib import Path
from ds_seq import launcher
folder = Path(sys.argv[1])
launcher.watch()
if "ask" in sys.argv:
    launcher.when_lost(lambda: (folder / "asked").touch())
(folder / "pid").write_text(str(os.getpid()))
(folder / "pid").rename(folder / "ready")
time.sleep(60)
"""


class Started:
    """A launcher and the rank that it has started."""

    def __init__(self, folder: Path, mark: str, *words: str, wrapped: bool = False) -> None:
        self.folder = folder
        rank = [sys.executable, "-c", RANK, str(folder), *words]
        if wrapped:
            rank = ["sh", "-c", '"$@"; true', "sh", *rank]
        self._log = (folder / "log").open("w")
        self.launcher = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, mark, *rank],
            stderr=self._log,
            env={name: value for name, value in os.environ.items() if "SLURM" not in name},
        )
        deadline = time.monotonic() + TIMEOUT
        while not (folder / "ready").exists():
            assert time.monotonic() < deadline and self.launcher.poll() is None, self.text()
            time.sleep(0.02)
        self.rank = psutil.Process(int((folder / "ready").read_text()))
        own = psutil.Process(self.launcher.pid)  # other tests have children of this process, too
        self._processes = [own, *own.children(recursive=True)]

    def text(self) -> str:
        """What both have printed."""
        return (self.folder / "log").read_text()

    def kill_launcher(self) -> None:
        """Kill it; its rank is adopted by somebody else."""
        self.launcher.send_signal(signal.SIGKILL)
        self.launcher.wait()

    def end(self) -> None:
        """Leave nothing."""
        for process in self._processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.launcher.wait()
        self._log.close()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Started]]:
    processes: list[Started] = []
    yield processes
    for each in processes:
        each.end()


@pytest.mark.parametrize("wrapped", [False, True], ids=["direct", "in a script"])
@pytest.mark.parametrize("mark", ["CROSS_RANK=0", "SLURM_PROCID=1 SLURM_STEP_ID=0"])
def test_a_rank_ends_with_its_launcher(
    mark: str, wrapped: bool, tmp_path: Path, started: list[Started]
) -> None:
    run = Started(tmp_path, mark, wrapped=wrapped)
    started.append(run)
    run.kill_launcher()
    psutil.wait_procs([run.rank], TIMEOUT)
    assert not run.rank.is_running()
    [line] = [line for line in run.text().splitlines() if line.startswith("ds-seq: ")]
    assert f"process {run.launcher.pid}) has ended" in line
    assert line.endswith(f"ends with exit code {EXIT_RANK_LOST}")


def test_a_training_is_asked_to_stop(tmp_path: Path, started: list[Started]) -> None:
    run = Started(tmp_path, "TORCHELASTIC_RUN_ID=none", "ask")
    started.append(run)
    run.kill_launcher()
    deadline = time.monotonic() + TIMEOUT
    while not (tmp_path / "asked").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert run.rank.is_running() and "saves and stops" in run.text()


def test_a_training_in_slurm_ends_at_once(tmp_path: Path, started: list[Started]) -> None:
    """The job may already run again: nothing more may be written."""
    run = Started(tmp_path, "TORCHELASTIC_RUN_ID=none SLURM_JOB_ID=7", "ask")
    started.append(run)
    run.kill_launcher()
    psutil.wait_procs([run.rank], TIMEOUT)
    assert not run.rank.is_running() and not (tmp_path / "asked").exists()


@pytest.mark.parametrize(
    "mark", ["RANK=0 WORLD_SIZE=2", pytest.param("SLURM_PROCID=0", marks=pytest.mark.slow)]
)
def test_what_no_launcher_has_started_goes_on(
    mark: str, tmp_path: Path, started: list[Started]
) -> None:
    """Such as a rank started by hand, in a shell that is closed later."""
    run = Started(tmp_path, mark)
    started.append(run)
    run.kill_launcher()
    time.sleep(2.5)
    assert run.rank.is_running() and run.text() == ""
