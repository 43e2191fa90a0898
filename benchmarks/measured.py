"""What commands take, all their processes included.

`python measured.py RESULT COMMAND ...` runs a command, and writes what it took to the file RESULT.
A process of its own does that because the kernel counts the memory of the process that starts a
command as the command's: this one is small.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
    """Most memory of one process, at least the 10 MB of an empty interpreter."""
    output: str


def measure(*commands: Sequence[str | Path]) -> Cost:
    """Run commands at the same time, which must succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(number) for number in range(len(commands))]
        processes = []
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as file, log.with_suffix(".err").open("w") as errors:
                launcher = [sys.executable, "-I", "-S", __file__, str(log.with_suffix(".json"))]
                words = [*launcher, *map(str, command)]
                processes.append(
                    subprocess.Popen(words, stdout=file, stderr=errors, env=environment)
                )
        for process, log in zip(processes, logs, strict=True):
            if process.wait():
                raise SystemExit(log.with_suffix(".err").read_text(encoding="utf-8")[-3000:])
        found = [json.loads(log.with_suffix(".json").read_text(encoding="utf-8")) for log in logs]
        output = "".join(log.read_text(encoding="utf-8") for log in logs)
    return Cost(
        max(each["seconds"] for each in found),
        sum(each["cpu_seconds"] for each in found),
        max(each["peak_bytes"] for each in found),
        output,
    )


def _run(result: str, command: Sequence[str]) -> int:
    """Run a command, wait for all it has started, and write what it took."""
    import ctypes
    import resource

    set_child_subreaper = 36  # processes that outlive their parents become our children
    ctypes.CDLL(None).prctl(set_child_subreaper, 1)
    begin = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os.execvp(command[0], command)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seconds = time.perf_counter() - begin
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss << 10,
    }
    with open(result, "w", encoding="utf-8") as file:
        json.dump(cost, file)
    return code


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1], sys.argv[2:]))
