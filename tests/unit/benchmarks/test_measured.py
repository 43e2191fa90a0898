"""What a command took is its own, not that of the process that measures."""

from __future__ import annotations

import sys

import pytest

from benchmarks.measured import measure

_MEGABYTE = 1 << 20


def test_memory_and_time_are_those_of_the_command_and_its_children() -> None:
    ours = bytearray(120 * _MEGABYTE)
    ours[:: 1 << 12] = b"x" * len(ours[:: 1 << 12])  # so that it is there
    small = measure([sys.executable, "-S", "-c", "print(1)"])
    assert small.output == "1\n" and small.peak_bytes < 50 * _MEGABYTE
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    x = bytearray(80 << 20); x[::4096] = b'x' * len(x[::4096])\n"
        "    while time.process_time() < 0.2: pass\n"
    )  # a child that nobody waits for
    large = measure([sys.executable, "-S", "-c", code])
    assert 80 * _MEGABYTE < large.peak_bytes < 120 * _MEGABYTE
    assert 0.2 < large.cpu_seconds < 5 and large.seconds > 0
    with pytest.raises(SystemExit, match="no such thing"):
        measure([sys.executable, "-S", "-c", "raise SystemExit('no such thing')"])
