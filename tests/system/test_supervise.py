"""`ds-seq supervise`: what is started again, what is not, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from safetensors.numpy import load_file

from ds_seq.commands.supervise import _job
from ds_seq.errors import EXIT_RANK_LOST, UserError
from ds_seq.supervision.supervisor import EXIT_GAVE_UP
from tests.system.commands import (
    REPOSITORY,
    Running,
    deepspeed,
    ds_seq,
    mpirun,
    run,
    started,
    torchrun,
)
from tests.system.forked import train
from tests.system.runs import TINY, Lab, checkpoints

TIMEOUT = 60.0
MPIRUN = pytest.mark.mpirun
# What a rank does, without torch: counts its starts, saves, tells that it lives, and ends somehow.
LIFE = """
import os, signal, sys, time
from pathlib import Path
from ds_seq.files import heartbeats
run = Path(sys.argv[1])
starts = run / "starts"
number = int(starts.read_text()) + 1 if starts.exists() else 1
starts.write_text(str(number))
(run / "pids").open("a").write(f"{{os.getpid()}} ")
def save(update):
    folder = run / "checkpoints" / f"update_{{update:08d}}"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text("")
def live():
    heartbeats.write("beat", dict(rank=0, update=7, hang_seconds=1.0))
def end(code):
    heartbeats.write("end", dict(code=code))
    sys.exit(code)
{does}
"""


def _command(folder: Path, does: str, *options: str) -> list[str | Path]:
    script = folder / "life.py"
    script.write_text(LIFE.format(does=does))
    start = ("supervise", "--backoff", "0.1", *options, "--run", folder, "--")
    return ds_seq(*start, sys.executable, script, folder)


def _journal(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "supervise" / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _starts(folder: Path) -> int:
    return int((folder / "starts").read_text())


def _assert_nothing_is_left(folder: Path) -> None:
    assert not [p for p in (folder / "pids").read_text().split() if psutil.pid_exists(int(p))]
    assert not (folder / "supervise" / "heartbeats").exists()
    assert not (folder / "supervise" / ".lock").exists()


def test_a_crash_is_started_again(tmp_path: Path) -> None:
    does = """
if number == 1:
    save(20)
    os.kill(os.getpid(), signal.SIGKILL)
if number == 2:
    raise RuntimeError("a bug")
"""
    end = run(_command(tmp_path, does), TIMEOUT)
    assert end.code == 0, end.err
    events = [line["event"] for line in _journal(tmp_path)]
    assert events == ["start", "restart", "start", "restart", "start", "end"]
    first, second = [line for line in _journal(tmp_path) if line["event"] == "restart"]
    assert first["reason"] == "killed by SIGKILL" and first["code"] == 137 and first["saved"] == 20
    assert 0.0 < first["seconds_lost"] < TIMEOUT
    assert second["reason"] == "exit code 1" and second["number"] == 2
    _assert_nothing_is_left(tmp_path)


@pytest.mark.parametrize("code", [2, 3, 130])
@pytest.mark.parametrize("launcher_code", [None, 1])
def test_a_mistake_is_not_repeated(code: int, launcher_code: int | None, tmp_path: Path) -> None:
    """Also under torchrun, which returns 1 whatever its ranks return."""
    does = f"heartbeats.write('end', dict(code={code})); sys.exit({launcher_code or code})"
    assert run(_command(tmp_path, does), TIMEOUT).code == code
    assert _starts(tmp_path) == 1
    assert _journal(tmp_path)[-1]["event"] == "end"


def test_it_gives_up_when_nothing_new_is_saved(tmp_path: Path) -> None:
    does = "save(number * 10) if number < 4 else None; live(); end(75)"
    end = run(_command(tmp_path, does, "--max-restarts", "2"), TIMEOUT)
    assert end.code == EXIT_GAVE_UP
    assert "2 restart(s) have saved nothing new" in end.err
    assert _starts(tmp_path) == 3 + 1 + 2 - 1  # progress in the first three
    assert _journal(tmp_path)[-1] | {"time": ""} == {
        "time": "",
        "event": "gave up",
        "reason": f"rank 0 (process {_last_pid(tmp_path)}) ended with code 75; exit code 75",
        "code": EXIT_RANK_LOST,
        "update": 7,
        "saved": 30,
    }


def _last_pid(folder: Path) -> str:
    return (folder / "pids").read_text().split()[-1]


def test_stopped_processes_are_killed(tmp_path: Path) -> None:
    """A rank that stops, and a child of its own in another session whose parent has ended."""
    does = """
if number == 1:
    live()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        (run / "pids").open("a").write(f"{os.getpid()} ")
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGSTOP)
"""
    end = run(_command(tmp_path, does), TIMEOUT)
    assert end.code == 0 and _starts(tmp_path) == 2
    assert "rank 0" in end.err and "no sign of life for" in end.err
    assert len((tmp_path / "pids").read_text().split()) == 3
    _assert_nothing_is_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_forwarded(number: signal.Signals, tmp_path: Path) -> None:
    does = """
def stop(number, frame):
    save(number)
    end(0)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, stop)
while True:
    live()
    time.sleep(0.1)
"""
    with started(_command(tmp_path, does)) as running:
        beats = tmp_path / "supervise" / "heartbeats"
        running.wait_until(lambda: bool(list(beats.glob("*/beat.*.json"))), TIMEOUT)
        os.kill(running.pid, number)
        assert running.wait(TIMEOUT).code == 0
    assert list((tmp_path / "checkpoints").iterdir())[0].name == f"update_{number:08d}"
    assert _journal(tmp_path)[-1]["reason"] == "stopped by a signal"
    assert _starts(tmp_path) == 1


def test_a_signal_before_a_restart_ends_it(tmp_path: Path) -> None:
    command = _command(tmp_path, "sys.exit(1)", "--backoff", "60")
    with started(command) as running:
        running.wait_until(lambda: (tmp_path / "starts").exists(), TIMEOUT)
        time.sleep(0.5)
        os.kill(running.pid, signal.SIGTERM)
        assert running.wait(TIMEOUT).code == 128 + signal.SIGTERM


def test_a_second_supervisor_is_refused(tmp_path: Path) -> None:
    command = _command(tmp_path, "time.sleep(60)")
    with started(command) as running:
        running.wait_until(lambda: (tmp_path / "starts").exists(), TIMEOUT)
        second = run(command, TIMEOUT)
    assert second.code == 2 and second.err.count("\n") == 1
    assert f"process {running.pid}" in second.err and "one supervisor" in second.err
    assert _starts(tmp_path) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("ls -l", "no command of ds_seq"),
        ("ds-seq score a b", "ds-seq score cannot resume"),
        ("ds-seq generate runs/x --input a", "add --output FILE"),
        ("ds-seq teacher-cache runs/x --data d --top-k 4", "add --out FOLDER"),
        ("deepspeed ds_seq/train.py nowhere.yaml", "nowhere.yaml: cannot be read"),
        ("ds-seq train a.yaml --resum", "no option --resum"),
    ],
)
def test_what_cannot_resume_is_refused(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _job(words.split())


@pytest.mark.parametrize(
    "launcher",
    [
        "deepspeed --num_gpus 2 ds_seq/train.py",
        "torchrun --nproc_per_node 2 -m ds_seq train",
        "mpirun -n 2 python /somewhere/ds_seq/train.py",
        "srun /venv/bin/ds-seq train",
    ],
)
def test_the_restarted_command_resumes(launcher: str, lab: Lab) -> None:
    more = ["--overwrite", "run_dir=here", "--checkpoint", "best", "--signal-exit-code=9"]
    job = _job([*launcher.split(), str(lab.dense), *more])
    assert job.words[-5:] == more
    kept = [str(lab.dense), "run_dir=here", "--signal-exit-code=9", "--resume"]
    assert job.again == [*launcher.split(), *kept]
    assert job.subject == Path("here") and job.stopped == {9}


def test_generate_resumes_too(tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = _job(["ds-seq", "generate", "runs/x", "--input", "a", "--output", str(output)])
    assert job.again[-1] == "--resume" and job.saved() == 0
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "lines").write_text("12345")
    assert job.saved() == 5


UPDATES = ("train.max_updates=20", "train.save_every=5", "train.validate_every=null")


def _training(lab: Lab, folder: Path) -> list[str]:
    return [str(lab.moe), *TINY, *UPDATES, f"run_dir={folder}", "train.hang_seconds=20"]


def _beats(folder: Path) -> dict[int, dict[str, Any]]:
    found = {}
    for path in folder.glob("supervise/heartbeats/*/beat.*.json"):
        beat = json.loads(path.read_text())
        found[beat["rank"]] = beat
    return found


def _hit(running: Running, folder: Path, rank: int, number: signal.Signals) -> None:
    """Send a signal to a rank that is at work and has saved something."""
    running.wait_until(lambda: bool(checkpoints(folder)), 4 * TIMEOUT)
    os.kill(_beats(folder)[rank]["pid"], number)


def _assert_same_weights(folder: Path, other: Path) -> None:
    for path in (other / "checkpoints" / "update_00000020").glob("*.safetensors"):
        expected, found = load_file(path), load_file(folder / path.relative_to(other))
        assert expected.keys() == found.keys()
        assert all((expected[name] == found[name]).all() for name in expected), path


@pytest.fixture(scope="module")
def whole(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    for rank in train(*_training(lab, folder), ranks=2):
        rank.check()
    return folder


def _assert_goes_on(
    launcher: Sequence[str | Path], rank: int, number: signal.Signals, lab: Lab, folder: Path
) -> None:
    """Hit a rank; the training is started again, and nothing of the first attempt is left."""
    command = ds_seq("supervise", "--backoff", "0.1", "--", *launcher)
    with started([*command, *_training(lab, folder)]) as running:
        _hit(running, folder, rank, number)
        pids = [beat["pid"] for beat in _beats(folder).values()]
        running.wait(5 * TIMEOUT).check()
    [restart] = [line for line in _journal(folder) if line["event"] == "restart"]
    assert restart["saved"] >= 5
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_training_ends_as_if_nothing_had_happened(
    lab: Lab, whole: Path, tmp_path: Path
) -> None:
    forking = (sys.executable, REPOSITORY / "tests" / "system" / "fork_ranks.py", "2")
    _assert_goes_on([*forking, "ds_seq/train.py"], 1, signal.SIGKILL, lab, tmp_path)
    _assert_same_weights(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", [deepspeed, torchrun, pytest.param(mpirun, marks=MPIRUN)])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_each_rank_of_each_launcher(
    launcher: Callable[..., list[str | Path]],
    rank: int,
    number: signal.Signals,
    lab: Lab,
    whole: Path,
    tmp_path: Path,
) -> None:
    _assert_goes_on(launcher("train"), rank, number, lab, tmp_path)
    _assert_same_weights(tmp_path, whole)
