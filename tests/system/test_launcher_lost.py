"""Real launchers are killed: their ranks do not work on alone, and a training loses nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from ds_seq.errors import EXIT_RANK_LOST
from ds_seq.files import LOCK_FILE, is_locked
from tests.system.commands import Running, deepspeed, mpirun, started, torchrun
from tests.system.forked import train
from tests.system.runs import NO_VALIDATION, TINY, Lab, checkpoints, losses, records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SETTINGS = (*TINY, *NO_VALIDATION, "train.log_every=1")
TIMEOUT = 90.0


def _command(running: Running, ranks: Sequence[psutil.Process]) -> int:
    return running.pid


def _parent_of_ranks(running: Running, ranks: Sequence[psutil.Process]) -> int:
    return int(ranks[0].ppid())


def _kill(
    command: Sequence[str | Path],
    script: str,
    is_at_work: Callable[[], bool],
    target: Callable[[Running, Sequence[psutil.Process]], int],
) -> str:
    """Kill a process of a launcher while two ranks are at work; return what they have printed."""
    with started(command) as running:
        running.wait_until(is_at_work, TIMEOUT)
        ranks = running.workers(script)
        assert len(ranks) == 2
        os.kill(target(running, ranks), signal.SIGKILL)
        _, left = psutil.wait_procs(ranks, TIMEOUT)
        for process in left:  # they are no children of the command any more
            process.kill()
        text = running.wait(TIMEOUT).err
    assert not left, text
    return text


@pytest.mark.parametrize(
    ("launcher", "target"),
    [
        pytest.param(torchrun, _command, id="torchrun"),
        pytest.param(deepspeed, _command, id="deepspeed"),
        pytest.param(deepspeed, _parent_of_ranks, id="deepspeed.launcher.launch"),
    ],
)
def test_a_training_saves_and_stops(
    launcher: Callable[..., list[str | Path]],
    target: Callable[[Running, Sequence[psutil.Process]], int],
    lab: Lab,
    tmp_path: Path,
) -> None:
    def three_updates() -> bool:
        return (tmp_path / "metrics.jsonl").is_file() and len(records(tmp_path)) >= 3

    arguments = [str(lab.moe), *SETTINGS, f"run_dir={tmp_path}"]
    command = launcher("train", *arguments, "train.max_updates=100000")
    text = _kill(command, "train.py", three_updates, target)
    assert "has ended; the training saves and stops" in text and "Traceback" not in text
    last = max(losses(tmp_path))
    assert checkpoints(tmp_path) == [last] and not is_locked(tmp_path / LOCK_FILE)
    more = [f"train.max_updates={last + 2}", "--resume"]
    train(*arguments, *more, ranks=2)[0].check()
    assert list(losses(tmp_path)) == list(range(1, last + 3))


@pytest.mark.parametrize("launcher", [torchrun, deepspeed])
def test_a_translation_ends(
    launcher: Callable[..., list[str | Path]], lab: Lab, dense_run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    text = ["--input", str(lab.text("train.en")), "--output", str(output)]
    slowly = ["--max-sentences=4", "--beam=8"]

    def has_begun() -> bool:
        return any(path.stat().st_size for path in tmp_path.glob("out.partial/*"))

    command = launcher("generate", str(dense_run), *text, *slowly)
    printed = _kill(command, "generate.py", has_begun, _command)
    assert printed.count(f"ends with exit code {EXIT_RANK_LOST}") == 2
    assert "Traceback" not in printed and not output.exists()


@pytest.mark.mpirun
def test_open_mpi_ends_its_own_ranks(lab: Lab, tmp_path: Path) -> None:
    """Here those that prepare data, which meet over MPI."""
    folder = f"data.dir={tmp_path}/data"
    command = [*mpirun("train")[:-1], "-m", "ds_seq", "prepare", str(lab.dense), folder]
    _kill(command, "ds_seq", lambda: len(_ranks_of(command)) == 2, _command)


def _ranks_of(command: Sequence[str | Path]) -> list[psutil.Process]:
    words = [str(word) for word in command[-3:]]
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.name().startswith("python") and process.cmdline()[-3:] == words
    ]
