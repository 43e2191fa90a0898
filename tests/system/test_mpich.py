"""MPICH's own launcher and library; skipped where there is no MPICH.

`pip install mpich` into a virtual environment of its own (it would hide Open MPI's `mpirun` in this
one), and append its `bin` to PATH; or Debian's package `mpich`.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from ds_seq.files import LOCK_FILE, is_locked
from tests.ports import free_port
from tests.system.commands import Running, ds_seq, run, script, started
from tests.system.forked import train
from tests.system.runs import NO_VALIDATION, TINY, Lab, checkpoints, losses, records

HYDRA = shutil.which("mpiexec.hydra") or ""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not HYDRA, reason="no mpiexec.hydra on PATH (MPICH; see the docstring)"),
]
SETTINGS = (*TINY, *NO_VALIDATION, "train.log_every=1", "model.dropout=0", "train.max_tokens=500")
TIMEOUT = 120.0


def _library() -> dict[str, str]:
    """Name MPICH's library to mpi4py, whose own search may find another MPI first."""
    wheel = Path(HYDRA).resolve().parents[1] / "lib" / "libmpi.so.12"
    debian = ctypes.util.find_library("mpich") or ""
    return {"MPI4PY_LIBMPI": str(wheel) if wheel.exists() else debian}


def _hydra(*words: str | Path, options: tuple[str, ...] = ()) -> list[str | Path]:
    return [HYDRA, *options, "-n", "2", *words]


def _train(*arguments: str | Path, options: tuple[str, ...] = ()) -> list[str | Path]:
    return _hydra(*ds_seq("train")[:1], script("train"), *arguments, options=options)


def _arguments(lab: Lab, folder: Path, *more: str) -> list[str]:
    return [str(lab.moe), *SETTINGS, "model.moe.capacity_factor=null", f"run_dir={folder}", *more]


def test_a_training_is_that_of_one_process(lab: Lab, tmp_path: Path) -> None:
    one = ("train.expert_parallel=1", "train.accumulate=2", "train.max_updates=3")
    train(*_arguments(lab, tmp_path / "one", *one))[0].check()
    two = _arguments(lab, tmp_path / "two", "train.max_updates=3")
    run(_train(*two), TIMEOUT, _library()).check()
    expected, found = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(found) == [1, 2, 3] and found == pytest.approx(expected, rel=1e-4)


def test_an_address_makes_mpi4py_unnecessary(lab: Lab, tmp_path: Path) -> None:
    address = ("-genv", "MASTER_ADDR", "127.0.0.1", "-genv", "MASTER_PORT", str(free_port()))
    arguments = _arguments(lab, tmp_path, "train.max_updates=1")
    nothing = {"MPI4PY_LIBMPI": str(tmp_path / "nothing.so")}
    run(_train(*arguments, options=address), TIMEOUT, nothing).check()
    assert list(losses(tmp_path)) == [1]


def test_ranks_prepare_the_bytes_of_one_process(lab: Lab, tmp_path: Path) -> None:
    contents = []
    for name, launcher in (("one", []), ("two", _hydra())):
        folder = tmp_path / name
        settings = [f"data.dir={folder}", "data.workers=1"]
        done = run([*launcher, *ds_seq("prepare", lab.dense, *settings)], TIMEOUT, _library())
        done.check()
        assert done.out.count("train: 2,000 pairs in 1 shard(s)") == 1, "only rank 0 reports"
        contents.append({path.name: path.read_bytes() for path in folder.rglob("train.*")})
    assert len(contents[0]) > 6 and contents[0] == contents[1]


def test_other_sizes_are_refused(lab: Lab, tmp_path: Path) -> None:
    arguments = _arguments(lab, tmp_path)
    done = run(_train(*arguments, options=("-genv", "WORLD_SIZE", "4")), TIMEOUT, _library())
    assert done.code == 2 and "WORLD_SIZE=4, but PMI_SIZE=2" in done.err
    assert "Traceback" not in done.err and not tmp_path.joinpath("metrics.jsonl").exists()


@pytest.mark.mpirun
@pytest.mark.parametrize("command", ["train", "prepare"])
def test_another_mpi_in_mpi4py_is_refused(command: str, lab: Lab, tmp_path: Path) -> None:
    """Open MPI's library, which knows nothing of this launcher, sees one process."""
    open_mpi = {"MPI4PY_LIBMPI": ctypes.util.find_library("mpi") or "libmpi.so"}
    words = [command, lab.moe, f"data.dir={tmp_path}/data", f"run_dir={tmp_path}/run"]
    done = run(_hydra(*ds_seq(*words)), TIMEOUT, open_mpi)
    assert done.code == 2 and "Traceback" not in done.err
    assert "MPI has started 2 processes, but mpi4py counts 1: it has loaded Open MPI" in done.err
    assert "MPI4PY_LIBMPI" in done.err and not list(tmp_path.iterdir())


def _mpiexec(running: Running, rank: psutil.Process) -> int:
    return running.pid


def _proxy(running: Running, rank: psutil.Process) -> int:
    return int(rank.ppid())  # the daemon of the node; it ignores SIGTERM


@pytest.mark.parametrize(
    ("target", "number", "saves"),
    [
        (_mpiexec, signal.SIGTERM, True),
        (_mpiexec, signal.SIGKILL, False),  # the proxies kill their ranks
        (_proxy, signal.SIGKILL, True),
    ],
)
def test_its_end_ends_the_ranks(
    target: Callable[[Running, psutil.Process], int],
    number: signal.Signals,
    saves: bool,
    lab: Lab,
    tmp_path: Path,
) -> None:
    def three_updates() -> bool:
        return (tmp_path / "metrics.jsonl").is_file() and len(records(tmp_path)) >= 3

    arguments = _arguments(lab, tmp_path, "train.max_updates=100000")
    with started(_train(*arguments), _library()) as running:
        running.wait_until(three_updates, TIMEOUT)
        ranks = running.workers("train.py")
        assert len(ranks) == 2
        os.kill(target(running, ranks[0]), number)
        _, left = psutil.wait_procs(ranks, TIMEOUT)
        for process in left:  # they are no children of the command any more
            process.kill()
        done = running.wait(TIMEOUT)
    assert not left and not is_locked(tmp_path / LOCK_FILE), done.err
    assert "Traceback" not in done.err
    assert (done.code == 0) == (number == signal.SIGTERM)
    assert checkpoints(tmp_path) == ([max(losses(tmp_path))] if saves else [])
