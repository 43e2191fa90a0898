"""Worker processes that are watched: one that dies or hangs ends the command with its name.

`ds_seq.data.parallel` yields results in order; here they come as they are finished, and a process
that is stopped, or stuck in a single step, is noticed as well as one that was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

from ds_seq.data.mpi import current_team
from ds_seq.data.parallel import worker_context
from ds_seq.environment import variable
from ds_seq.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
State = TypeVar("State")

SILENCE = 40.0
"""Seconds without a sign of life after which a process counts as hung."""
_TICK = 1.0


class Watched:
    """Tells a process that is silent too long, by the time in which this process was awake."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._last, self._silent = time.monotonic(), 0.0

    def is_late(self, heard: bool) -> bool:
        """Return whether the silence is too long.

        Args:
            heard: whether there was a sign of life since the last call.
        """
        now = time.monotonic()
        # if this process itself was stopped meanwhile, the others may have been, too
        self._silent = 0.0 if heard else self._silent + min(now - self._last, 2 * _TICK)
        self._last = now
        return self._silent > self._patience


class _Done(NamedTuple):
    result: Any


class _Failed(NamedTuple):
    error: BaseException
    trace: str


class _Worker:
    """A process, and the thread that talks to it."""

    def __init__(self, number: int, start: Any, tasks: queue.Queue[Any], alive: Any) -> None:
        context = worker_context()
        self.number = number
        self._tasks = tasks
        self._ours, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(theirs, *start, alive, number), daemon=True
        )
        self.process.start()
        theirs.close()

    def talk(self, results: queue.Queue[Any]) -> None:
        """Hand tasks to the process until there are none; put what comes back into `results`."""
        try:
            while (task := self._tasks.get()) is not None:
                self._ours.send(task)
                results.put(self._ours.recv())
        except (EOFError, OSError):
            results.put(self)  # the process has ended


def map_watched(
    function: Callable[[State, Item], Result],
    state: State,
    items: Iterable[Item],
    workers: int,
    prepare: Callable[[State], None] | None = None,
) -> Iterator[Result]:
    """Yield `function(state, item)` for every item, in the order in which they are finished.

    Args:
        function: function at the top level of a module, so that it can be sent to processes.
        state: object that every call needs; it is sent to each process once.
        items: items, read lazily in this process.
        workers: number of processes; with 1, the work is done in this process. Of no account if
            the other ranks of `mpirun` wait for work, see `ds_seq.data.mpi`.
        prepare: called first in each process: it may take any time.

    Raises:
        UserError: a process has died or hangs; names it.
    """
    if (ranks := current_team()) is not None:
        yield from ranks.map(function, state, items, prepare)
        return
    if workers <= 1:
        if prepare is not None:
            prepare(state)
        for item in items:
            yield function(state, item)
        return
    pool = _Pool(workers, state, prepare)
    try:
        yield from pool.run(function, items)
    finally:
        pool.close()


class _Pool:
    def __init__(self, size: int, state: object, prepare: Callable[..., None] | None) -> None:
        self._size = size
        self._tasks: queue.Queue[Any] = queue.Queue()
        self._results: queue.Queue[Any] = queue.Queue()
        self._alive = worker_context().RawArray("Q", size)
        self._seen = [0] * size
        self._watched = [Watched(SILENCE) for _ in range(size)]
        # Processes that are started would look for modules in the working folder first
        with variable("PYTHONSAFEPATH", "1"):
            self._workers = [
                _Worker(n, (state, prepare), self._tasks, self._alive) for n in range(size)
            ]
        for worker in self._workers:
            threading.Thread(target=worker.talk, args=(self._results,), daemon=True).start()

    def run(self, function: Callable[..., Any], items: Iterable[Any]) -> Iterator[Any]:
        pending = 0
        for item in items:
            self._tasks.put((function, item))
            pending += 1
            while pending >= 2 * self._size or (pending and not self._results.empty()):
                yield self._next()
                pending -= 1
        for _ in range(pending):
            yield self._next()

    def _next(self) -> Any:
        while True:
            try:
                found = self._results.get(timeout=_TICK)
            except queue.Empty:
                self._look()
                continue
            self._look()
            if isinstance(found, _Done):
                return found.result
            if isinstance(found, _Failed):
                raise found.error from _Remote(found.trace)
            raise self._death(found)

    def _look(self) -> None:
        for worker, watched in zip(self._workers, self._watched, strict=True):
            ticks = self._alive[worker.number]
            heard = ticks != self._seen[worker.number]
            self._seen[worker.number] = ticks
            # one that starts may take its time: it loads modules, perhaps a model
            if watched.is_late(heard or not (ticks or _is_stopped(worker.process.pid))):
                raise UserError(
                    f"{self._name(worker)} has given no sign of life for {SILENCE:.0f} seconds: it "
                    "was stopped, or hangs in one line; finished blocks are kept, start the "
                    "command again to go on"
                )

    def _name(self, worker: _Worker) -> str:
        return f"cleaning worker {worker.number + 1} of {self._size} (process {worker.process.pid})"

    def _death(self, worker: _Worker) -> UserError:
        worker.process.join(5)
        code = worker.process.exitcode
        how = f"ended with exit code {code}"
        why = ""
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                why = ", perhaps because there is too little memory; use fewer (--workers, or "
                why += "data.workers)"
        return UserError(
            f"{self._name(worker)} {how}{why}; finished blocks are kept, start the command again "
            "to go on"
        )

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()  # also one that is stopped
        for worker in self._workers:
            self._tasks.put(None)
            worker.process.join()


def _is_stopped(pid: int | None) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except OSError:
        return False


class _Remote(Exception):
    """The traceback of an exception in another process."""

    def __str__(self) -> str:
        return f"in a worker process:\n{self.args[0]}"


def _serve(
    connection: Connection,
    state: object,
    prepare: Callable[..., None] | None,
    alive: Any,
    number: int,
) -> None:
    """Answer tasks until the main process closes the connection or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; one reports it
    try:
        if prepare is not None:
            prepare(state)
    except Exception as error:
        connection.send(_Failed(error, traceback.format_exc()))
        return
    threading.Thread(target=_tick, args=(alive, number), daemon=True).start()
    while True:
        try:
            function, item = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer: _Done | _Failed = _Done(function(state, item))
        except Exception as error:
            answer = _Failed(error, traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:
            return


def _tick(alive: Any, number: int) -> None:
    """Show that this process is alive, and end it when the main process has been killed."""
    parent = multiprocessing.parent_process()
    while True:
        alive[number] += 1
        time.sleep(_TICK)
        if parent is not None and not parent.is_alive():
            os._exit(1)
