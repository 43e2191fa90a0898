"""Ports for the process groups of tests that run side by side."""

from __future__ import annotations

import os
import random
import socket

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
# below those that the system hands out for outgoing connections (from 32768 on Linux)
_FIRST, _LAST = 12000, 32000
_RANDOM = random.SystemRandom()  # a test may have seeded the other one


def free_port() -> int:
    """Return a free TCP port that no other worker of this session gets."""
    while True:
        port = _RANDOM.randrange(_FIRST + _WORKER, _LAST, _WORKERS)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
