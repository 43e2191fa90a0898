"""Run a command, watch the heartbeats of its ranks, and start it again after a crash or a hang."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from ds_seq import files
from ds_seq.errors import EXIT_DIVERGED, EXIT_INTERRUPTED, EXIT_RANK_LOST, EXIT_USER_ERROR
from ds_seq.files import heartbeats
from ds_seq.files.heartbeats import Heartbeats
from ds_seq.supervision.processes import CommandProcess, adopt_orphans

EXIT_GAVE_UP = 76
"""The command was restarted as often as allowed without saving anything new."""

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_TURN, _READ_EVERY = 0.1, 0.5  # seconds
_GRACE = 10.0  # seconds for a launcher to end the other ranks after one has failed
_LATER = 1.2  # times the limit of the ranks, which should notice first
_MOST_BACKOFF = 300.0  # seconds
_STALE = 310.0  # seconds: more than any wait, and than a lock of another host takes to be stale
_SIGNALED = 128  # plus the number of a signal is the exit code in a shell
_FINAL = {
    EXIT_USER_ERROR: "a mistake in the input",
    EXIT_DIVERGED: "the training has diverged",
    EXIT_INTERRUPTED: "interrupted",
}


@dataclass(frozen=True)
class Job:
    """What is supervised.

    Attributes:
        words: the command.
        again: the command that continues with what the first one has saved.
        state: folder of the journal, the lock and the heartbeats.
        subject: what the command writes, for messages.
        saved: how much is saved: the update of the newest checkpoint, or a number of bytes. It
            grows as long as the command makes progress.
        lock: lock file of what the command writes; None if that is not known.
        stopped: exit codes of a command that a signal has stopped.
    """

    words: Sequence[str]
    again: Sequence[str]
    state: Path
    subject: Path
    saved: Callable[[], int]
    lock: Path | None = None
    stopped: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Limits:
    """When to start again.

    Attributes:
        max_restarts: restarts in a row after which nothing new was saved.
        backoff: seconds before the first of these; each further one waits twice as long.
        hang_seconds: seconds without a heartbeat after which a rank whose own limit is not known
            counts as lost.
    """

    max_restarts: int
    backoff: float
    hang_seconds: float


class _End(NamedTuple):
    """How an attempt has ended.

    Attributes:
        code: exit code of the command, as a shell has it.
        reason: why it ended, for people.
        is_final: whether it must not be started again.
    """

    code: int
    reason: str
    is_final: bool


class Supervisor:
    """Runs a job to its end.

    Args:
        job: the job.
        limits: when to start it again.
    """

    def __init__(self, job: Job, limits: Limits) -> None:
        self._job, self._limits = job, limits
        self._signals: list[int] = []
        self._num_sent = 0

    def run(self) -> int:
        """Run the job; return the exit code.

        Raises:
            UserError: another supervisor has this job, or the command cannot be started.
        """
        state = self._job.state
        advice = "one run needs one supervisor: stop the other one first"
        with files.Lock(state / files.LOCK_FILE, self._job.subject, advice):
            adopt_orphans()
            before = {number: signal.getsignal(number) for number in _FORWARDED}
            try:
                for number in _FORWARDED:
                    if before[number] is not signal.SIG_IGN:  # of SIGHUP under `nohup`
                        signal.signal(number, self._note)
                return self._run()
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
                shutil.rmtree(state / "heartbeats", ignore_errors=True)

    def _run(self) -> int:
        restarts = in_vain = 0
        words = self._job.words
        while True:
            saved, saved_at = self._job.saved(), time.monotonic()
            self._write({"event": "start", "command": shlex.join(words), "saved": saved})
            end, update, newest_at = self._attempt(words, restarts, saved, saved_at)
            now_saved = self._job.saved()
            in_vain = 0 if now_saved > saved else in_vain
            facts = {"reason": end.reason, "code": end.code, "update": update, "saved": now_saved}
            if end.is_final or in_vain >= self._limits.max_restarts:
                if not end.is_final:
                    self._say(
                        f"{end.reason}; gives up: {in_vain} restart(s) have saved nothing new"
                    )
                self._write({"event": "end" if end.is_final else "gave up", **facts})
                return end.code if end.is_final else EXIT_GAVE_UP
            wait = min(self._limits.backoff * 2**in_vain, _MOST_BACKOFF)
            in_vain, restarts, words = in_vain + 1, restarts + 1, self._job.again
            self._say(
                f"{end.reason} after update {update}, {now_saved:,} saved; restart {restarts} in "
                f"{wait:g} s"
            )
            if not self._wait(wait):
                self._write({"event": "end", **facts, "reason": "stopped by a signal"})
                return _SIGNALED + self._signals[0]
            lost = time.monotonic() - newest_at
            self._write(
                {"event": "restart", "number": restarts, **facts, "seconds_lost": round(lost, 1)}
            )

    def _attempt(
        self, words: Sequence[str], number: int, saved: int, saved_at: float
    ) -> tuple[_End, int, float]:
        """Run the command once.

        Returns:
            How it ended; the update it has reached; when it last saved something.
        """
        folder = self._job.state / "heartbeats" / str(number)
        shutil.rmtree(folder, ignore_errors=True)
        with files.writing(folder):
            folder.mkdir(parents=True)
        beats = Heartbeats(folder)
        process = CommandProcess(words, {heartbeats.FOLDER: str(folder.resolve())})
        read_at, failed_at, hang = 0.0, None, ""
        try:
            while (code := process.poll()) is None:
                self._forward(process, beats)
                now = time.monotonic()
                if now - read_at >= _READ_EVERY:
                    read_at = now
                    beats.read()
                    if (newest := self._job.saved()) > saved:
                        saved, saved_at = newest, now
                    if _has_failed(beats):
                        failed_at = now if failed_at is None else failed_at
                    hang = self._hang(beats, now, failed_at)
                    if hang:
                        break
                time.sleep(_TURN)
        finally:
            beats.read()
            if process.poll() != 0:  # after a success, whatever is left was meant to stay
                left = process.kill_all(p.pid for p in beats.processes.values() if p.is_running)
                if left:
                    self._say(f"process(es) {', '.join(map(str, left))} cannot be killed")
        if self._job.saved() > saved:
            saved_at = time.monotonic()
        return self._judge(code, hang, beats), beats.update, saved_at

    def _forward(self, process: CommandProcess, beats: Heartbeats) -> None:
        """Send the signals that have arrived to the ranks of this host, or to the launcher.

        Ranks agree to stop if one of them is asked to. Launchers may end them before they save.
        """
        while len(self._signals) > self._num_sent:
            number = self._signals[self._num_sent]
            self._num_sent += 1
            beats.read()
            ranks = [p.pid for p in beats.processes.values() if p.is_running and p.code is None]
            process.send(number, ranks)

    def _hang(self, beats: Heartbeats, now: float, failed_at: float | None) -> str:
        """Return which rank hangs, or an empty string."""
        if failed_at is not None and now - failed_at > _GRACE:
            return f"{_first_failure(beats)}; others were left after {_GRACE:g} s"
        processes = list(beats.processes.values())
        watched = [process for process in processes if process.is_watched]
        for process in watched:
            own = process.beat.get("hang_seconds")
            silent = now - process.changed
            if silent > _LATER * (own or self._limits.hang_seconds):
                what = f"rank {process.beat.get('rank')} (process {process.pid} on {process.host})"
                return f"{what} has given no sign of life for {silent:.0f} s"
        if processes and not watched:  # they all start, or end
            silent = now - max(process.changed for process in processes)
            if silent > 4 * self._limits.hang_seconds:
                return f"no sign of life of any rank for {silent:.0f} s"
        return ""

    def _judge(self, code: int | None, hang: str, beats: Heartbeats) -> _End:
        """Decide what the end of the command means."""
        codes = sorted((p.ended, p.code) for p in beats.processes.values() if p.code is not None)
        first = codes[0][1] if codes and len(codes) == len(beats.processes) else None
        if code is None:
            return _End(EXIT_RANK_LOST, hang, bool(self._signals))
        shown = code if code >= 0 else _SIGNALED - code
        if code == 0:
            return _End(0, "stopped by a signal" if self._signals else "done", True)
        if self._signals or shown in self._job.stopped or first in self._job.stopped:
            return _End(shown, "stopped by a signal", True)
        for final in (shown, first):
            if final in _FINAL:
                return _End(final, _FINAL[final], True)
        if code < 0:
            return _End(shown, f"killed by {signal.Signals(-code).name}", False)
        return _End(shown, f"{_first_failure(beats)}; exit code {shown}".lstrip("; "), False)

    def _wait(self, seconds: float) -> bool:
        """Wait before a restart; return whether to go on with it.

        A lock that a killed rank of another host has left is waited for until it is stale.
        """
        started, lock = time.monotonic(), self._job.lock
        while (waited := time.monotonic() - started) < _STALE:
            if self._signals:
                return False
            if waited >= seconds and (lock is None or not files.is_locked(lock)):
                break
            time.sleep(_TURN)
        return not self._signals

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def _say(self, text: str) -> None:
        print(f"ds-seq: supervise: {text}", file=sys.stderr, flush=True)

    def _write(self, values: dict[str, Any]) -> None:
        """Append a line to the journal."""
        path = self._job.state / "journal.jsonl"
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with files.writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": when, **values}) + "\n")


def _has_failed(beats: Heartbeats) -> bool:
    """Return whether a process has ended, other than well."""
    return any(process.code or process.was_killed for process in beats.processes.values())


def _first_failure(beats: Heartbeats) -> str:
    """Describe the process that failed first: killed ones first, which write nothing."""
    for process in beats.processes.values():
        if process.was_killed:
            return f"rank {process.beat.get('rank', '?')} (process {process.pid}) was killed"
    failed = [process for process in beats.processes.values() if process.code]
    if not failed:
        return ""
    first = min(failed, key=lambda process: process.ended)
    return f"rank {first.beat.get('rank', '?')} (process {first.pid}) ended with code {first.code}"
