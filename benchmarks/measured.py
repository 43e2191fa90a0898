"""What commands take, all their processes included."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Cost(NamedTuple):
    """What a command took, over all its processes."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    """Most memory of one process."""
    output: str


def measure(*commands: Sequence[str | Path]) -> Cost:
    """Run commands at the same time, which must succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(number) for number in range(len(commands))]
        processes = []
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as file, log.with_suffix(".err").open("w") as errors:
                words = [str(word) for word in command]
                processes.append(
                    subprocess.Popen(words, stdout=file, stderr=errors, env=environment)
                )
        cpu, peak = 0.0, 0
        for process, log in zip(processes, logs, strict=True):
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(log.with_suffix(".err").read_text(encoding="utf-8")[-3000:])
            cpu += usage.ru_utime + usage.ru_stime
            peak = max(peak, usage.ru_maxrss << 10)
        seconds = time.perf_counter() - begin
        with contextlib.suppress(ChildProcessError):  # what they have left to us; see `data.py`
            while True:
                usage = os.wait4(-1, 0)[2]
                cpu += usage.ru_utime + usage.ru_stime
        output = "".join(log.read_text(encoding="utf-8") for log in logs)
    return Cost(seconds, cpu, peak, output)
