"""The scripts of `launch/` on a real SLURM: two nodes, requeue, preemption, and a lost node."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.system.commands import REPOSITORY, Finished
from tests.system.forked import generate, train
from tests.system.runs import checkpoints, losses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TRAIN = REPOSITORY / "launch" / "slurm_train.sbatch"
GENERATE = REPOSITORY / "launch" / "slurm_generate.sbatch"
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    """What a site sets: the environment of Python, the CPU, and where the output goes."""
    return {
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin",
        "PYTHONPATH": str(REPOSITORY),
        "DS_ACCELERATOR": "cpu",
        "SBATCH_OUTPUT": str(tmp_path / "%j.out"),
        "DS_SEQ_RANK_LOGS": str(tmp_path),
    }


@pytest.fixture(autouse=True)
def no_job_is_left(slurm: Cluster) -> Iterator[None]:
    """A job of a test that fails must not run alongside the next test."""
    yield
    slurm.cancel_all()


def _log(tmp_path: Path, job: int) -> str:
    return (tmp_path / f"{job}.out").read_text()


def _rank_logs(tmp_path: Path, job: int) -> list[str]:
    (folder,) = tmp_path.glob(f"*-{job}.ranks")
    paths = sorted(folder.iterdir(), key=lambda path: int(path.stem))
    assert [path.name for path in paths] == [f"{rank}.out" for rank in range(len(paths))]
    return [path.read_text() for path in paths]


def _whole(experiment: Path, folder: Path, *more: str) -> dict[int, float]:
    """Losses of the same run by two processes without SLURM, never interrupted."""
    train(experiment, f"run_dir={folder}", *more, ranks=2, timeout=150)[0].check()
    return losses(folder)


def test_two_nodes_train_one_model_with_experts_on_both(
    slurm: Cluster, experiment: Path, site: dict[str, str], tmp_path: Path
) -> None:
    job = slurm.submit(
        *TWO_NODES, TRAIN, experiment, f"run_dir={tmp_path}/run", folder=REPOSITORY, environ=site
    )
    assert slurm.wait(job, 120) == "COMPLETED", _log(tmp_path, job)
    assert slurm.show(job)["NodeList"] == "n[1-2]"
    assert losses(tmp_path / "run") == _whole(experiment, tmp_path / "alone")
    assert "2 process(es)" in _log(tmp_path, job)
    first, second = _rank_logs(tmp_path, job)
    assert "update 20 " in first and "update 20 " not in second
    assert re.search(r"^host +address +ranks +devices\n.* 0-1 +cpu$", first, re.MULTILINE)


def test_a_mistake_ends_the_job_before_a_rank_starts(
    slurm: Cluster, experiment: Path, site: dict[str, str], tmp_path: Path
) -> None:
    job = slurm.submit(
        *TWO_NODES, TRAIN, experiment, "train.expert_parallel=3", folder=REPOSITORY, environ=site
    )
    assert slurm.wait(job, 60) == "FAILED"
    assert slurm.show(job)["ExitCode"] == "2:0"
    assert "train.expert_parallel" in _log(tmp_path, job)
    assert "Traceback" not in _log(tmp_path, job)


LONG = ("train.max_updates=700", "train.save_every=100000")
SAVING = ("train.max_updates=400", "train.save_every=50")


def test_a_job_at_its_time_limit_is_requeued_and_goes_on_exactly(
    slurm: Cluster, experiment: Path, site: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = slurm.submit(
        *TWO_NODES, "--time=1", "--signal=B:TERM@15", TRAIN, experiment, f"run_dir={run}", *LONG,
        folder=REPOSITORY, environ=site,
    )  # fmt: skip
    assert slurm.wait(job, 380) == "COMPLETED", _log(tmp_path, job)
    assert int(slurm.show(job)["Restarts"]) >= 1
    assert "Time limit reached" in _log(tmp_path, job)
    assert losses(run) == _whole(experiment, tmp_path / "alone", *LONG)


def _start(slurm: Cluster, experiment: Path, site: dict[str, str], run: Path) -> int:
    """Submit a training that saves often; return when it has a checkpoint."""
    job = slurm.submit(
        *TWO_NODES, TRAIN, experiment, f"run_dir={run}", *SAVING, folder=REPOSITORY, environ=site
    )
    slurm.wait_for(lambda: bool(checkpoints(run)), 200, "the run has a checkpoint")
    return job


def test_a_preempted_job_comes_back(
    slurm: Cluster, experiment: Path, site: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = _start(slurm, experiment, site, run)
    urgent = slurm.submit(
        "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 1", folder=tmp_path,
        environ=site,
    )  # fmt: skip
    assert slurm.wait(urgent, 90) == "COMPLETED"
    assert slurm.wait(job, 200) == "COMPLETED", _log(tmp_path, job)
    assert slurm.show(job)["Restarts"] == "1"
    assert losses(run) == _whole(experiment, tmp_path / "alone", *SAVING)


@pytest.mark.parametrize("node", ["n2", "n1"], ids=["of a rank", "of the script and rank 0"])
def test_a_job_that_loses_a_node_resumes_when_it_is_back(
    slurm: Cluster, experiment: Path, site: dict[str, str], tmp_path: Path, node: str
) -> None:
    run = tmp_path / "run"
    job = _start(slurm, experiment, site, run)
    slurm.lose_node(node)
    slurm.wait_for(lambda: slurm.state(job) != "RUNNING", 150, "the job is stopped")
    slurm.start_node(node)
    assert slurm.wait(job, 300) == "COMPLETED", _log(tmp_path, job)
    # twice if SLURM, which still wants to end a step on the lost node, ends the new one there
    assert int(slurm.show(job)["Restarts"]) >= 1
    assert losses(run) == _whole(experiment, tmp_path / "alone", *SAVING)


def test_two_nodes_translate_what_one_process_translates(
    slurm: Cluster, experiment: Path, site: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    _whole(experiment, run)
    text = experiment.parent / "text" / "test.en"
    output = tmp_path / "two"
    job = slurm.submit(
        *TWO_NODES, GENERATE, run, "--input", text, "--output", output,
        folder=REPOSITORY, environ=site,
    )  # fmt: skip
    assert slurm.wait(job, 120) == "COMPLETED", _log(tmp_path, job)
    alone: list[Finished] = generate(run, "--input", text, "--output", tmp_path / "one")
    alone[0].check()
    assert output.read_bytes() == (tmp_path / "one").read_bytes()
