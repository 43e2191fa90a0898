"""Worker processes end with the process that has started them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from ds_seq.data.clean import CleanOptions, clean
from ds_seq.data.parallel import map_in_order
from ds_seq.errors import UserError
from ds_seq.text.lines import PairPath
from ds_seq.text.normalize import Normalizer


class Sleepy(Normalizer):
    """Never finishes a line."""

    def __call__(self, text: str) -> str:
        time.sleep(60)
        return text


def _clean_in_child(folder: Path) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            text = PairPath(folder / "in.en", folder / "in.de")
            options = CleanOptions(Sleepy(False), 1, 9, 9.0, False, False)
            clean([text], PairPath(folder / "out.en", folder / "out.de"), options, workers=2)
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        os._exit(0)
    return pid


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_workers_do_not_outlive_the_main_process(tmp_path: Path, number: int, code: int) -> None:
    for side in ("en", "de"):
        (tmp_path / f"in.{side}").write_text("a line\n" * 100_000)
    pid = _clean_in_child(tmp_path)
    process = psutil.Process(pid)
    deadline = time.monotonic() + 60
    while len(family := process.children(recursive=True)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(list(tmp_path.glob(".out.*.tmp"))) == 2
    process.send_signal(number)
    if number == signal.SIGTERM:  # running tasks are finished first, as they last a second at most
        for worker in family:
            worker.kill()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    _, alive = psutil.wait_procs(family, timeout=60)
    for worker in alive:
        worker.kill()
    assert not alive
    if number == signal.SIGTERM:
        assert not list(tmp_path.glob(".out.*.tmp"))


def _die(state: None, item: int) -> None:
    os._exit(1)


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(UserError, match=r"one of 2 worker processes was killed, .* use fewer"):
        list(map_in_order(_die, None, range(2), 2))
