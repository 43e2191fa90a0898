"""Steps of a real SLURM without the scripts of `launch/`: the doctor, and signals to `srun`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from ds_seq.errors import EXIT_RANK_LOST
from ds_seq.files import LOCK_FILE, heartbeats, is_locked
from ds_seq.files.heartbeats import Heartbeats
from ds_seq.runs.verification import verify
from tests.slurm.cluster import Cluster
from tests.slurm.test_jobs import TWO_NODES, no_job_is_left, site
from tests.system.commands import REPOSITORY, ds_seq
from tests.system.runs import checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
__all__ = ["no_job_is_left", "site"]

TIMEOUT = 90.0


def _step(*command: str | Path) -> list[str]:
    return ["srun", *TWO_NODES, "--kill-on-bad-exit=1", *map(str, command)]


def test_the_doctor_under_srun(slurm: Cluster, site: dict[str, str], tmp_path: Path) -> None:
    doctor = ds_seq("doctor", "--folder", tmp_path, "--json")
    done = slurm.run(*_step(*doctor), folder=REPOSITORY, environ=site).check()
    report = json.loads(done.out)
    assert report["ranks"] == 2 and report["status"] != "FAIL", done.out
    checks = {finding["check"]: finding for finding in report["findings"]}
    for kind in ("all-reduce", "all-gather", "all-to-all"):
        assert checks[f"gloo {kind}"]["status"] == "ok" and checks[f"gloo {kind}"]["ranks"] == [
            0,
            1,
        ]
    assert checks["clocks"]["status"] == "ok"
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".out"]


def test_the_doctor_names_a_task_that_does_not_come(
    slurm: Cluster, site: dict[str, str], tmp_path: Path
) -> None:
    """The second task of the step fails before it runs anything of ours."""
    doctor = " ".join(map(str, ds_seq("doctor", "--folder", tmp_path, "--patience", "5")))
    script = f"[ $SLURM_PROCID = 0 ] && exec {doctor}; sleep 20"
    done = slurm.run(*_step("sh", "-c", script), folder=REPOSITORY, environ=site)
    assert done.code != 0
    assert "rank(s) 1 of 2 did not join" in done.out and "Traceback" not in done.out + done.err


class Step:
    """A training in a step, of which `srun` runs here and the ranks are children of slurmstepd."""

    def __init__(self, client: subprocess.Popen[bytes], beats: Heartbeats, run: Path) -> None:
        self.client, self._beats, self.run = client, beats, run

    def ranks(self) -> list[psutil.Process]:
        """The ranks that have begun."""
        self._beats.read()
        found = self._beats.processes.values()
        return [psutil.Process(each.pid) for each in found if each.is_running]

    def wait_until_it_has_saved(self) -> None:
        """Wait for the first checkpoint."""
        deadline = time.monotonic() + TIMEOUT
        while not checkpoints(self.run) or len(self.ranks()) < 2:
            assert time.monotonic() < deadline and self.client.poll() is None
            time.sleep(0.1)


@contextmanager
def _training(
    slurm: Cluster, experiment: Path, site: dict[str, str], folder: Path
) -> Iterator[Step]:
    beats, run = folder / "beats", folder / "run"
    beats.mkdir()
    endless = ("train.max_updates=1000000", "train.save_every=20", f"run_dir={run}")
    environ = {**slurm.environ, **site, heartbeats.FOLDER: str(beats)}
    with (folder / "log").open("w") as log:
        client = subprocess.Popen(
            _step(*ds_seq("train", experiment, *endless)),
            env=environ,
            cwd=REPOSITORY,
            stdout=log,
            stderr=log,
        )
    step = Step(client, Heartbeats(beats), run)
    try:
        yield step
    finally:
        for process in step.ranks():
            process.kill()
        client.kill()
        client.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_srun_ends_the_step_and_damages_nothing(
    number: signal.Signals,
    slurm: Cluster,
    experiment: Path,
    site: dict[str, str],
    tmp_path: Path,
) -> None:
    """USR1 is passed on to the ranks, which save; at TERM and HUP srun kills them."""
    with _training(slurm, experiment, site, tmp_path) as step:
        step.wait_until_it_has_saved()
        ranks = step.ranks()
        os.kill(step.client.pid, number)
        _, left = psutil.wait_procs(ranks, TIMEOUT)
        code = step.client.wait(TIMEOUT)
        text = (tmp_path / "log").read_text()
    assert not left and "Traceback" not in text, text
    assert (code == 0) == (number == signal.SIGUSR1), text
    assert not is_locked(step.run / LOCK_FILE)
    assert all(finding.is_sound for finding in verify(step.run))


def test_ranks_end_at_once_when_slurmstepd_is_killed(
    slurm: Cluster, experiment: Path, site: dict[str, str], tmp_path: Path
) -> None:
    """SLURM may start the job again at any moment: nothing more may be written."""
    with _training(slurm, experiment, site, tmp_path) as step:
        step.wait_until_it_has_saved()
        ranks = step.ranks()
        for parent in {rank.ppid() for rank in ranks}:
            assert "slurmstepd" in psutil.Process(parent).name()
            os.kill(parent, signal.SIGKILL)
        _, left = psutil.wait_procs(ranks, 20.0)
        step.ranks()
        codes = {process.code for process in step._beats.processes.values()}
    assert not left and codes == {EXIT_RANK_LOST}
    assert not is_locked(step.run / LOCK_FILE)
