"""The ranks of an MPI job (mpi4py), and signs of life between them.

No call waits without end: a thread of each rank listens to rank 0, that of rank 0 to all, and one
that is silent ends the job by name.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from ds_seq.data import watching
from ds_seq.data.watching import TICK, Watched
from ds_seq.errors import EXIT_USER_ERROR, escaped
from ds_seq.mpi import load_mpi

_STAGGER = 0.5  # seconds


def find_mpi(environ: Mapping[str, str]) -> Any:
    """Return the module `mpi4py.MPI` if `mpirun` or `srun` has started several processes, or None.

    Raises:
        UserError: mpi4py cannot be loaded, or sees another number of processes.
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
        return None
    return load_mpi(size, "start a single process with --workers")


class RankWatch:
    """Ends the job when a rank gives no sign of life.

    Args:
        mpi: the module `mpi4py.MPI`.
    """

    def __init__(self, mpi: Any) -> None:
        self._mpi = mpi
        self._world = mpi.COMM_WORLD
        self._rank: int = self._world.Get_rank()
        self._size: int = self._world.Get_size()
        self._name = f"rank {self._rank} ({socket.gethostname()}, process {os.getpid()})"
        self._names = {self._rank: self._name}
        self._signs = self._world.Dup()
        if mpi.Query_thread() < mpi.THREAD_MULTIPLE:
            print(
                "ds-seq: note: this MPI has no threads; a hung rank is not noticed", file=sys.stderr
            )
            return
        threading.Thread(target=self._watch, daemon=True).start()

    def _end(self, message: str) -> None:
        for line in message.splitlines():
            print(f"ds-seq: error: {escaped(line)}", file=sys.stderr, flush=True)
        self._world.Abort(EXIT_USER_ERROR)
        time.sleep(60)

    def _watch(self) -> None:
        others = range(1, self._size) if self._rank == 0 else range(1)
        watched = {other: Watched(watching.SILENCE) for other in others}
        requests: dict[int, Any] = {}
        status = self._mpi.Status()
        while True:
            for other in others:
                if other not in requests or requests[other].test()[0]:
                    requests[other] = self._signs.isend(self._name, other)
            heard = set()
            while self._signs.iprobe(self._mpi.ANY_SOURCE, self._mpi.ANY_TAG, status):
                source = status.Get_source()
                heard.add(source)
                self._names[source] = self._signs.recv(None, source)
            for other in others:
                if watched[other].is_late(other in heard):
                    time.sleep(_STAGGER * max(0, self._rank - 1))  # one of them ends all others
                    name = self._names.get(other, f"rank {other}")
                    self._end(
                        f"{name} has given no sign of life for {watching.SILENCE:.0f} seconds: it "
                        "was stopped, or its machine is gone; what is finished is kept, start the "
                        "command again to continue"
                    )
            time.sleep(TICK)
