"""A thread that writes the heartbeats of this process, for `ds-seq supervise`."""

from __future__ import annotations

import threading
import time

from ds_seq.activity import CURRENT
from ds_seq.distributed.launch import World
from ds_seq.files import heartbeats

_TURN = 1.0  # seconds
_LEAVING = 2.0  # seconds that a process waits for a disk that may not answer


class Heartbeat:
    """Writes the state of this process every second, if somebody reads it; see `heartbeats`.

    Args:
        world: this rank and the number of ranks.
        seconds: limit of the watchdog; None: there is none.
    """

    def __init__(self, world: World, seconds: float | None) -> None:
        self._world, self.seconds = world, seconds
        self._count = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if heartbeats.is_wanted():
            self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Write that this process leaves, and end the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_LEAVING)

    def _run(self) -> None:
        while True:
            has_left = self._stop.is_set()
            self._count += 1
            heartbeats.write(
                "beat",
                {
                    "count": self._count,
                    "rank": self._world.rank,
                    "world": self._world.size,
                    "update": CURRENT.update,
                    "phase": CURRENT.phase,
                    "idle": round(time.monotonic() - CURRENT.marked, 1),
                    "hang_seconds": self.seconds,
                    "left": has_left,
                },
            )
            if has_left:
                return
            self._stop.wait(_TURN)
