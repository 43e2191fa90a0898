"""Ranks of an MPI job that clean one text together (mpi4py).

Ranks exchange a few small values and signs of life, no text. No call waits without end: a thread of
each rank listens to rank 0, that of rank 0 to all, and one that is silent ends the job by name.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from ds_seq.data.cleaning.pool import SILENCE, Watched
from ds_seq.errors import EXIT_USER_ERROR, UserError, escaped

Value = TypeVar("Value")

_TICK = 1.0
_ALIVE, _ERROR, _VALUE = 1, 2, 3  # tags of messages
_POLL, _STAGGER = 0.02, 0.5  # seconds


class Ranks(Protocol):
    """Processes that work together."""

    rank: int
    size: int

    def share(self, value: Value | None) -> Value:
        """Return the value of rank 0."""

    def collect(self, value: Value) -> list[Value] | None:
        """Return the values of all ranks on rank 0, None on others."""

    def fail(self, error: UserError) -> None:
        """Report an error of this rank and end all ranks; returns only if there is one rank."""


class Alone:
    """A process that works alone."""

    rank = 0
    size = 1

    def share(self, value: Value | None) -> Value:
        """Return the value."""
        assert value is not None
        return value

    def collect(self, value: Value) -> list[Value] | None:
        """Return the value."""
        return [value]

    def fail(self, error: UserError) -> None:
        """Do nothing: the error is reported as any other."""


def find_ranks(environ: Mapping[str, str]) -> Ranks:
    """Return the ranks of the job that `mpirun` or `srun` has started, or this process alone.

    Raises:
        UserError: the launcher has started several processes, but mpi4py sees one.
    """
    names = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
    size = max((int(environ[name]) for name in names if environ.get(name, "").isdigit()), default=1)
    if (
        size == 1
        and "SLURM_STEP_ID" in environ
        and environ.get("SLURM_STEP_NUM_TASKS", "").isdigit()
    ):
        size = int(environ["SLURM_STEP_NUM_TASKS"])
    if size <= 1:
        return Alone()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # a missing library raises the latter
        raise UserError(
            f"{size} processes were started, but mpi4py cannot be loaded ({error}); install it for "
            "this MPI, or start a single process with --workers"
        ) from None
    if MPI.COMM_WORLD.Get_size() != size:
        raise UserError(
            f"{size} processes were started, but mpi4py sees {MPI.COMM_WORLD.Get_size()}: it was "
            "built for another MPI than this launcher; install it again, or start a single "
            "process with --workers"
        )
    return MpiRanks(MPI)


class MpiRanks:
    """The ranks of an MPI job.

    Args:
        mpi: the module `mpi4py.MPI`.

    Attributes:
        world: mpi4py's communicator of all ranks, for messages of others.
    """

    def __init__(self, mpi: Any) -> None:
        self._mpi = mpi
        self.world = mpi.COMM_WORLD
        self.rank: int = self.world.Get_rank()
        self.size: int = self.world.Get_size()
        self._name = f"rank {self.rank} ({socket.gethostname()}, process {os.getpid()})"
        self._names = {self.rank: self._name}
        self._signs = self.world.Dup()
        self._values = self.world.Dup()
        self._ending = threading.Lock()
        if mpi.Query_thread() < mpi.THREAD_MULTIPLE:
            print(
                "ds-seq: note: this MPI has no threads; a hung rank is not noticed", file=sys.stderr
            )
            return
        threading.Thread(target=self._watch, daemon=True).start()

    def share(self, value: Value | None) -> Value:
        """Return the value of rank 0."""
        if self.rank == 0:
            for request in [
                self._values.isend(value, other, _VALUE) for other in range(1, self.size)
            ]:
                while not request.test()[0]:
                    time.sleep(_POLL)
            assert value is not None
            return value
        found: Value = self._receive(0)
        return found

    def collect(self, value: Value) -> list[Value] | None:
        """Return the values of all ranks on rank 0, None on others."""
        if self.rank == 0:
            return [value, *(self._receive(other) for other in range(1, self.size))]
        request = self._values.isend(value, 0, _VALUE)
        while not request.test()[0]:
            time.sleep(_POLL)
        return None

    def _receive(self, source: int) -> Any:
        while not self._values.iprobe(source, _VALUE):
            time.sleep(_POLL)
        return self._values.recv(None, source, _VALUE)

    def fail(self, error: UserError) -> None:
        """Report an error of this rank, through rank 0 so that one is reported, and end all."""
        if self.rank != 0:
            self._signs.isend(f"{self._name}: {error}", 0, _ERROR)
            time.sleep(10 * _TICK)  # rank 0 ends this process, unless it cannot
        self._end(str(error))

    def _end(self, message: str) -> None:
        with self._ending:
            for line in message.splitlines():
                print(f"ds-seq: error: {escaped(line)}", file=sys.stderr, flush=True)
            self.world.Abort(EXIT_USER_ERROR)
            time.sleep(60)

    def _watch(self) -> None:
        others = range(1, self.size) if self.rank == 0 else range(1)
        watched = {other: Watched(SILENCE) for other in others}
        requests: dict[int, Any] = {}
        while True:
            for other in others:
                if other not in requests or requests[other].test()[0]:
                    requests[other] = self._signs.isend(self._name, other, _ALIVE)
            heard = set()
            status = self._mpi.Status()
            while self._signs.iprobe(self._mpi.ANY_SOURCE, self._mpi.ANY_TAG, status):
                source, tag = status.Get_source(), status.Get_tag()
                text = self._signs.recv(None, source, tag)
                if tag == _ERROR:
                    self._end(text)
                heard.add(source)
                self._names[source] = text
            for other in others:
                if watched[other].is_late(other in heard):
                    time.sleep(_STAGGER * max(0, self.rank - 1))  # one of them ends all others
                    name = self._names.get(other, f"rank {other}")
                    self._end(
                        f"{name} has given no sign of life for {SILENCE:.0f} seconds: it was "
                        "stopped, or its machine is gone; finished blocks are kept, start the "
                        "command again to go on"
                    )
            time.sleep(_TICK)
