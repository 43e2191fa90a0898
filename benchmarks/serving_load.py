"""serving.py: servers as processes, and clients that load them."""

from __future__ import annotations

import http.client
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        process: its process.
        port: its port on this machine.
    """

    process: subprocess.Popen[str]
    port: int

    @property
    def cpu_seconds(self) -> float:
        """Processor time so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def megabytes(self) -> float:
        """Resident memory."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 1e6


@contextmanager
def started(*command: object) -> Iterator[Server]:
    """Start a server that prints its address, and end it."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        found = None
        while found is None:
            line = process.stderr.readline()
            if not line:
                raise SystemExit(f"{command}: did not start")
            found = re.search(r"serving at http://127.0.0.1:(\d+)/", line)
        yield Server(process, int(found[1]))
    finally:
        process.kill()
        process.wait()


@dataclass
class Load:
    """What clients have seen.

    Attributes:
        seconds: time from the first request to the last answer.
        cpu_seconds: processor time of the server.
        latencies: seconds of each answer.
        statuses: number of answers by status; 0: the connection was refused or reset.
        lost: requests that were sent and not answered.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    latencies: list[float] | None = None
    statuses: dict[int, int] | None = None
    lost: int = 0

    def percentile(self, percent: int) -> float:
        """Return a percentile of the latencies, in milliseconds."""
        cuts = statistics.quantiles(self.latencies or [0.0, 0.0], n=100, method="inclusive")
        return 1000 * cuts[percent - 1]


class _Client(threading.Thread):
    """Sends requests one after another over one connection."""

    def __init__(self, port: int, bodies: Sequence[dict[str, Any]]) -> None:
        super().__init__()
        self._port, self._bodies = port, bodies
        self.latencies: list[float] = []
        self.statuses: list[int] = []
        self.lost = 0

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        for body in self._bodies:
            began = time.monotonic()
            try:
                connection.connect() if connection.sock is None else None
            except OSError:
                self.statuses.append(0)
                return
            try:
                content = json.dumps(body).encode()
                connection.request(
                    "POST", "/translate", content, {"Content-Type": "application/json"}
                )
                answer = connection.getresponse()
                answer.read()
                self.statuses.append(answer.status)
                self.latencies.append(time.monotonic() - began)
            except (http.client.RemoteDisconnected, ConnectionError):
                # an idle connection that the server has closed: it has not read the request
                self.statuses.append(0)
                connection.close()
            except (http.client.HTTPException, OSError):
                self.lost += 1  # a part of an answer
                connection.close()


def load(server: Server, bodies: Sequence[dict[str, Any]], num_clients: int) -> Load:
    """Send requests by some clients at the same time, each one after another."""
    clients = [_Client(server.port, bodies[i::num_clients]) for i in range(num_clients)]
    cpu, began = server.cpu_seconds, time.monotonic()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    found = Load(time.monotonic() - began, 0.0, [], {}, sum(client.lost for client in clients))
    if server.process.poll() is None:
        found.cpu_seconds = server.cpu_seconds - cpu
    assert found.latencies is not None and found.statuses is not None
    for client in clients:
        found.latencies += client.latencies
        for status in client.statuses:
            found.statuses[status] = found.statuses.get(status, 0) + 1
    return found
