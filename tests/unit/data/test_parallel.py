"""Worker processes end with the process that has started them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.unit.data import slow_clean


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_workers_do_not_outlive_the_main_process(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    for side in ("en", "de"):
        (tmp_path / f"in.{side}").write_text("a line\n" * 100_000)
    command = [sys.executable, "-m", slow_clean.__name__, str(tmp_path)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root) as main:
        process = psutil.Process(main.pid)
        try:
            deadline = time.monotonic() + 60
            while len(family := process.children(recursive=True)) < 2:
                assert time.monotonic() < deadline and main.poll() is None
                time.sleep(0.02)
            while not list(tmp_path.glob("out.en.partial/*.index")):
                assert time.monotonic() < deadline and main.poll() is None
                time.sleep(0.02)
            main.send_signal(number)
            assert main.wait(60) == code
            _, alive = psutil.wait_procs(family, timeout=60)
        finally:
            main.kill()
    for worker in alive:
        worker.kill()
    assert not alive
    assert bool(list(tmp_path.glob(".out.*.lock"))) == (number == signal.SIGKILL)
    assert not (tmp_path / "out.en").exists() and not (tmp_path / "out.de").exists()
