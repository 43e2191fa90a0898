"""Worker processes that are watched: one that dies or hangs ends the command with its name.

None of them outlives this process. Each has a thread here, which hands it the next task as soon as
its result is there; the results come in the order in which they are finished.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from ds_seq import files
from ds_seq.data import watching
from ds_seq.data.watching import TICK, Watched
from ds_seq.environment import keep_freed_memory, variable
from ds_seq.errors import UserError

_PRELOADED = ["ds_seq.data.binarize", "ds_seq.data.clean"]
_HAVE_THREADS = ("torch", "mpi4py.MPI")  # libraries whose threads do not survive a fork


class LostProcess(UserError):
    """A worker process, or a rank, has died or hangs."""


class _Done(NamedTuple):
    number: int
    result: Any


class _Failed(NamedTuple):
    error: BaseException
    trace: str


def may_fork() -> bool:
    """Return whether a copy of this process would work.

    Threads of other code do not exist in the copy, and what they had locked stays locked. The
    thread that renews our locks locks nothing.
    """
    return sys.platform == "linux" and not (
        any(name in sys.modules for name in _HAVE_THREADS)
        or any(
            thread is not threading.main_thread() and thread.name != files.RENEWING
            for thread in threading.enumerate()
        )
    )


def _context() -> ForkContext | ForkServerContext | SpawnContext:
    """Return how worker processes are started.

    A copy of this process is there at once. Where that is not safe, they are forked from a process
    that has loaded what most of them need, which costs the imports that each of them would repeat.
    """
    if may_fork():
        return multiprocessing.get_context("fork")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


class _Worker:
    """A process, and the threads that talk to it.

    Args:
        context: how it is started.
        number: its number, from 0.
        arguments: what `_serve` needs besides the connection.
    """

    def __init__(self, context: Any, number: int, arguments: tuple[Any, ...]) -> None:
        self.number = number
        self._ours, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(theirs, *arguments, number), daemon=True
        )
        with warnings.catch_warnings():  # Python 3.12 counts threads; see `may_fork`
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        theirs.close()

    def talk(self, tasks: queue.SimpleQueue[Any], results: queue.SimpleQueue[Any]) -> None:
        """Hand tasks to the process until there are none; put what comes back into `results`."""
        try:
            while (task := tasks.get()) is not None:
                self._ours.send(task)
                results.put(self._ours.recv())
        except (EOFError, OSError):  # the process has ended
            results.put(self._last_words() or self)
        except Exception as error:  # a task or a result that cannot be sent
            results.put(_Failed(error, traceback.format_exc()))

    def _last_words(self) -> Any:
        """Return what a process has sent before it ended, while it was handed a task; or None."""
        try:
            return self._ours.recv() if self._ours.poll() else None
        except (EOFError, OSError):
            return None


class WatchedPool:
    """Worker processes for one function. A context manager.

    Args:
        size: number of processes.
        function: called as `function(state, item)`, in any of them.
        state: object that every call needs; it is sent to each process once.
        prepare: called with the state first in each process: it may take any time.
    """

    def __init__(
        self,
        size: int,
        function: Callable[[Any, Any], Any],
        state: object,
        prepare: Callable[[Any], None] | None = None,
    ) -> None:
        self.size = size
        self._tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        context = _context()
        self._alive = context.RawArray("Q", size)
        self._seen = [0] * size
        self._watched = [Watched(watching.SILENCE) for _ in range(size)]
        self._workers: list[_Worker] = []
        # Processes that are started would look for modules in the working folder first. Python
        # 3.10 ignores the variable.
        with variable("PYTHONSAFEPATH", "1"):
            for number in range(size):
                arguments = (function, state, prepare, self._alive)
                self._workers.append(_Worker(context, number, arguments))
        self._threads = [
            threading.Thread(target=worker.talk, args=(self._tasks, self._results), daemon=True)
            for worker in self._workers
        ]
        for thread in self._threads:
            thread.start()

    def run(self, items: Iterable[Any], *, in_order: bool) -> Iterator[Any]:
        """Yield the result of each item.

        Items are read lazily: at most twice as many as there are processes are under way, and at
        most four times as many ahead of the next result.

        Args:
            items: the items.
            in_order: whether results come in the order of the items, or as they are finished.

        Raises:
            LostProcess: a process has died or hangs.
        """
        source = enumerate(items)
        waiting: dict[int, Any] = {}
        sent = received = given = 0
        is_over = False
        while True:
            while not is_over and sent - received < 2 * self.size and sent - given < 4 * self.size:
                task = next(source, None)
                is_over = task is None
                if task is not None:
                    self._tasks.put(task)
                    sent += 1
            if sent == received:
                return
            index, result = self._next()
            received += 1
            waiting[index if in_order else given] = result
            while given in waiting:
                yield waiting.pop(given)
                given += 1

    def _next(self) -> tuple[int, Any]:
        while True:
            try:
                found = self._results.get(timeout=TICK)
            except queue.Empty:
                self._look()
                continue
            self._look()
            if isinstance(found, _Done):
                return found.number, found.result
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
                raise LostProcess(
                    f"{self._name(worker)} has given no sign of life for "
                    f"{watching.SILENCE:.0f} seconds: it was stopped, or hangs in one line"
                )

    def _name(self, worker: _Worker) -> str:
        return f"worker {worker.number + 1} of {self.size} (process {worker.process.pid})"

    def _death(self, worker: _Worker) -> LostProcess:
        worker.process.join(5)
        code = worker.process.exitcode
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                how += (
                    ", perhaps because there is too little memory; use fewer (--workers, or "
                    "data.workers)"
                )
        return LostProcess(f"{self._name(worker)} {how}")

    def __enter__(self) -> WatchedPool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.process.kill()  # also one that is stopped
        for worker in self._workers:
            self._tasks.put(None)
            worker.process.join()
        for thread in self._threads:  # so that this process has no threads, and may fork again
            thread.join()


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
    function: Callable[[Any, Any], Any],
    state: object,
    prepare: Callable[[Any], None] | None,
    alive: Any,
    own: int,
) -> None:
    """Answer tasks until the main process ends this one, or is gone."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; one reports it
    for name in (signal.SIGTERM, signal.SIGHUP):  # a copy has the handlers of the main process
        if signal.getsignal(name) is not signal.SIG_IGN:
            signal.signal(name, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        if prepare is not None:
            prepare(state)
    except Exception as error:
        connection.send(_failed(error))
        return
    threading.Thread(target=_tick, args=(alive, own), daemon=True).start()
    while True:
        try:
            number, item = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer: _Done | _Failed = _Done(number, function(state, item))
        except Exception as error:
            answer = _failed(error)
        try:
            connection.send(answer)
        except OSError:
            return
        except Exception as error:  # a result that cannot be sent
            connection.send(_failed(error))


def _failed(error: Exception) -> _Failed:
    """Return an exception that can be sent, and where it was raised."""
    trace = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # its class is local, or wants other arguments
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return _Failed(error, trace)


def _tick(alive: Any, number: int) -> None:
    """Show that this process is alive."""
    while True:
        alive[number] += 1
        time.sleep(TICK)


def _end_with(parent: int) -> None:
    """End this process when the main process, or the one that has forked it, has been killed."""
    main = multiprocessing.parent_process()
    while os.getppid() == parent and (main is None or main.is_alive()):
        time.sleep(TICK)
    os._exit(1)
