"""Signals that ask a run to save and end; the end of its launcher does so, too."""

from __future__ import annotations

import os
import select
import signal
import stat
from collections.abc import Iterable
from types import FrameType
from typing import Any

from ds_seq import launcher

# SLURM warns with SIGTERM or SIGUSR1, a person with Ctrl-C, a terminal that closes with SIGHUP
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class StopSignals:
    """Notes the signals that arrive between `install` and `restore`.

    Attributes:
        received: whether one has arrived.
    """

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Take over the signals; SIGHUP only if it is not ignored, as it is under `nohup`."""
        for number in _SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        launcher.when_lost(self._on_loss)

    def restore(self) -> None:
        """Restore the handlers that were there before."""
        launcher.when_lost(None)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; a second Ctrl-C ends immediately."""
        if number == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        self.received = True
        if number == signal.SIGHUP:
            leave_closed()

    def _on_loss(self) -> None:
        self.received = True
        leave_closed()


def leave_closed(descriptors: Iterable[int] = (1, 2)) -> None:
    """Discard further output to a terminal or pipe that has closed, where each write is an error.

    Pipes close, for example, when a launcher is killed that passed the output on.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        mode = os.fstat(descriptor).st_mode
        has_closed = stat.S_ISCHR(mode) and not os.isatty(descriptor)
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            poll = select.poll()
            poll.register(descriptor, 0)
            has_closed = bool(poll.poll(0))  # an error, or nobody who reads
        if has_closed:
            os.dup2(null, descriptor)
    os.close(null)
