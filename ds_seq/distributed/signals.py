"""Signals that ask a run to save and end; the end of its launcher does so, too."""

from __future__ import annotations

import os
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
            _leave_closed_terminal((1, 2))

    def _on_loss(self) -> None:
        self.received = True


def _leave_closed_terminal(descriptors: Iterable[int]) -> None:
    """Discard further output to a terminal that has closed, where each write is an error."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
        if is_device and not os.isatty(descriptor):
            os.dup2(null, descriptor)
    os.close(null)
