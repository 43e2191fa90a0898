"""Sweeps, preparation, other ways to start ranks, and `ds-seq slurm`, on a real SLURM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.ports import free_port
from tests.slurm.cluster import Cluster
from tests.slurm.test_jobs import TWO_NODES, no_job_is_left, site
from tests.system.commands import REPOSITORY, ds_seq, script
from tests.system.forked import train
from tests.system.runs import losses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
__all__ = ["no_job_is_left", "site"]

TRAIN = REPOSITORY / "launch" / "slurm_train.sbatch"
PREPARE = REPOSITORY / "launch" / "slurm_prepare.sbatch"


def _alone(experiment: Path, folder: Path, *more: str) -> dict[int, float]:
    train(experiment, f"run_dir={folder}", *more, ranks=2, timeout=150)[0].check()
    return losses(folder)


def _outputs(folder: Path) -> str:
    """What a test that fails shows: all logs of its jobs."""
    paths = [path for path in folder.rglob("*.out") if path.is_file()]
    return "\n".join(f"--- {path}\n{path.read_text()[-3000:]}" for path in paths)


def test_tasks_of_a_sweep_come_back_on_their_own(
    slurm: Cluster, experiment: Path, site: dict[str, str], tmp_path: Path
) -> None:
    """The first reaches its time limit; on a busy machine, the second may, too."""
    sweep = tmp_path / "rates.txt"
    first = ("train.max_updates=700", "train.save_every=100000", "train.seed=5")
    sweep.write_text(
        f"# two runs\n\n{' '.join(first)} run_dir='{tmp_path}/a run'\n"
        f"optimizer.lr=1e-3 run_dir={tmp_path}/b\n"
    )
    job = slurm.submit(
        *TWO_NODES, "--array=1-2", "--time=1", "--signal=B:TERM@15", TRAIN, "--sweep", sweep,
        experiment, folder=REPOSITORY, environ=site,
    )  # fmt: skip
    tasks = [f"{job}_1", f"{job}_2"]
    for task in tasks:
        assert slurm.wait(task, 380) == "COMPLETED", _outputs(tmp_path)
    assert int(slurm.show(tasks[0])["Restarts"]) >= 1
    assert losses(tmp_path / "a run") == _alone(experiment, tmp_path / "c", *first)
    assert losses(tmp_path / "b") == _alone(experiment, tmp_path / "d", "optimizer.lr=1e-3")


def test_an_array_without_a_sweep_is_refused(
    slurm: Cluster, experiment: Path, site: dict[str, str], tmp_path: Path
) -> None:
    job = slurm.submit("--array=1", TRAIN, experiment, folder=REPOSITORY, environ=site)
    assert slurm.wait(f"{job}_1", 60) == "FAILED"
    assert slurm.show(f"{job}_1")["ExitCode"] == "2:0"
    assert "give it --sweep FILE" in _outputs(tmp_path)


def test_two_nodes_prepare_the_bytes_of_one_process(
    slurm: Cluster, experiment: Path, site: dict[str, str], tmp_path: Path
) -> None:
    # two nodes on one machine would take the same names for what their ranks share in memory
    site |= {"OMPI_MCA_btl": "self,tcp", "OMPI_MCA_btl_tcp_if_include": "lo"}
    job = slurm.submit(
        "--nodes=2", "--ntasks-per-node=2", PREPARE, experiment, f"data.dir={tmp_path}/data",
        folder=REPOSITORY, environ=site,
    )  # fmt: skip
    assert slurm.wait(job, 150) == "COMPLETED", _outputs(tmp_path)
    assert slurm.show(job)["NumTasks"] == "4"
    one, four = (
        {path.name: path.read_bytes() for path in (folder / "data").rglob("train.*")}
        for folder in (experiment.parent, tmp_path)
    )
    assert len(one) > 6 and one == four


def test_a_task_per_node_that_starts_its_ranks(
    slurm: Cluster, experiment: Path, site: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    agent = (
        f"torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d "
        f"--rdzv-endpoint 127.0.0.1:{free_port()}"
    )
    command = f"srun {agent} {script('train')} {experiment} run_dir={run}"
    job = slurm.submit(*TWO_NODES, f"--wrap={command}", folder=REPOSITORY, environ=site)
    assert slurm.wait(job, 120) == "COMPLETED", _outputs(tmp_path)
    assert losses(run) == _alone(experiment, tmp_path / "alone")


def test_an_inherited_world_size_is_refused(
    slurm: Cluster, experiment: Path, site: dict[str, str], tmp_path: Path
) -> None:
    command = f"WORLD_SIZE=4 srun ds-seq train {experiment} run_dir={tmp_path}/run"
    job = slurm.submit(*TWO_NODES, f"--wrap={command}", folder=REPOSITORY, environ=site)
    assert slurm.wait(job, 90) == "FAILED"
    assert slurm.show(job)["ExitCode"] == "2:0"
    output = _outputs(tmp_path)
    assert "WORLD_SIZE=4, but SLURM_STEP_NUM_TASKS=2: srun has started 2" in output
    assert "Traceback" not in output and not (tmp_path / "run").exists()


@pytest.fixture
def own(experiment: Path, tmp_path: Path) -> Iterator[Path]:
    """The experiment under another name, with relative paths, in a folder of its own."""
    settings = yaml.safe_load(experiment.read_text())
    settings["run_dir"] = "run"
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(settings))
    yield path


def test_the_command_submits_what_it_has_checked(
    slurm: Cluster, own: Path, site: dict[str, str], tmp_path: Path
) -> None:
    """First the training, then a translation that waits for it."""
    del site["SBATCH_OUTPUT"]  # stronger than the script
    options = ("--nodes", "2", "--time", "10", "--submit")
    done = slurm.run(*ds_seq("slurm", own.name, *options), folder=tmp_path, environ=site)
    job = int(done.check().err.split("submitted job ")[1].split(";")[0])
    text = own.parent / "in.en"
    text.write_text("a b\n")
    done = slurm.run(
        *ds_seq("slurm", "run", "--job", "generate", *options, "--after", str(job)),
        "--", "--input", text, "--output", "out", folder=tmp_path, environ=site,
    )  # fmt: skip
    then = int(done.check().err.split("submitted job ")[1].split(";")[0])
    assert slurm.wait(job, 150) == "COMPLETED", _outputs(tmp_path)
    assert slurm.wait(then, 150) == "COMPLETED", _outputs(tmp_path)
    assert len(losses(tmp_path / "run")) == 20
    assert len((tmp_path / "out").read_text().splitlines()) == 1
    logs = {path.parent.name for path in (tmp_path / "run" / "slurm").rglob("?.out")}
    assert logs == {f"moe-{job}.ranks", f"run-generate-{then}.ranks"}
