"""Spread work over worker processes, or over the ranks of `mpirun`, with bounded memory."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from ds_seq.data.mpi import current_team
from ds_seq.data.processes import WatchedPool

Item = TypeVar("Item")
Result = TypeVar("Result")
State = TypeVar("State")


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
        LostProcess: a process has died or hangs; names it.
    """
    return _map(function, state, items, workers, None, in_order=True)


def map_as_finished(
    function: Callable[[State, Item], Result],
    state: State,
    items: Iterable[Item],
    workers: int,
    prepare: Callable[[State], None] | None = None,
) -> Iterator[Result]:
    """Yield `function(state, item)` for every item, as soon as it is known; see `map_in_order`.

    Args:
        function: see `map_in_order`.
        state: see `map_in_order`.
        items: see `map_in_order`.
        workers: see `map_in_order`.
        prepare: called with the state first in each process: it may take any time.
    """
    return _map(function, state, items, workers, prepare, in_order=False)


def _map(
    function: Callable[[State, Item], Result],
    state: State,
    items: Iterable[Item],
    workers: int,
    prepare: Callable[[State], None] | None,
    *,
    in_order: bool,
) -> Iterator[Result]:
    if (ranks := current_team()) is not None:
        yield from ranks.map(function, state, items, prepare)
    elif workers > 1:
        with WatchedPool(workers, function, state, prepare) as pool:
            yield from pool.run(items, in_order=in_order)
    else:
        if prepare is not None:
            prepare(state)
        for item in items:
            yield function(state, item)


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
