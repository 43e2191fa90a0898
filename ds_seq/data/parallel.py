"""Ordered map over worker processes, with bounded memory; none of them outlives this process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from types import FrameType
from typing import TypeVar

from ds_seq.data.mpi import current_team
from ds_seq.environment import variable
from ds_seq.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
State = TypeVar("State")

_PRELOADED = ["ds_seq.data.binarize", "ds_seq.data.cleaning.block"]
_state: list[object] = []  # state of this worker process; empty in the main process


def map_in_order(
    function: Callable[[State, Item], Result], state: State, items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Yield `function(state, item)` for every item, in the order of the items.

    `state` is sent to each worker once, the items one by one. Only a few items per worker are in
    flight at a time, so that a corpus is never in memory as a whole (`multiprocessing.Pool.imap`,
    in contrast, reads its input as fast as it can).

    Args:
        function: function at the top level of a module, so that it can be sent to processes.
        state: object that every call needs, for example a tokenizer.
        items: items, read lazily in this process.
        workers: number of processes; with 1, the work is done in this process. Of no account under
            `mpirun`, where the other ranks work; see `ds_seq.data.mpi`.

    Raises:
        UserError: a process has been killed, normally because memory is short.
    """
    if (ranks := current_team()) is not None:
        yield from ranks.map(function, state, items)
        return
    if workers <= 1:
        for item in items:
            yield function(state, item)
        return
    # Processes that are started would look for modules in the working folder first. Python 3.10
    # ignores the variable.
    with variable("PYTHONSAFEPATH", "1"):
        yield from _map_in_processes(function, state, items, workers)


def worker_context() -> ForkServerContext | SpawnContext:
    """Return how worker processes are started.

    They are forked from a process that has loaded what most of them need and runs no threads;
    forking this one, with its threads (torch, tqdm), may deadlock. It is started with the first of
    them, and costs the imports that each worker would repeat.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _map_in_processes(
    function: Callable[[State, Item], Result], state: State, items: Iterable[Item], workers: int
) -> Iterator[Result]:
    pool = ProcessPoolExecutor(workers, worker_context(), initializer=_start, initargs=(state,))
    try:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(_call, function, item))
            if len(pending) >= 3 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            f"one of {workers} worker processes was killed, probably because there is too little "
            "memory; use fewer (data.workers, or --workers)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block like an exception, so that files are removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
                previous[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start(state: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; one reports it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _state.append(state)


def _end_with_parent() -> None:
    """End this process when the main process has been killed; its queue would never close."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _call(function: Callable[[State, Item], Result], item: Item) -> Result:
    return function(_state[0], item)  # type: ignore[arg-type]
