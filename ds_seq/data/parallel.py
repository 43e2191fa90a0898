"""Ordered map over worker processes, with bounded memory."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
State = TypeVar("State")

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
        workers: number of processes; with 1, the work is done in this process.
    """
    if workers <= 1:
        for item in items:
            yield function(state, item)
        return
    # "spawn", because forking a process with running threads (torch, tqdm) may deadlock. A spawned
    # process would look for modules in the working folder first; Python 3.11 and newer can refrain.
    os.environ["PYTHONSAFEPATH"] = "1"
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(state,)
    )
    try:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(_call, function, item))
            if len(pending) >= 3 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start(state: object) -> None:
    _state.append(state)


def _call(function: Callable[[State, Item], Result], item: Item) -> Result:
    return function(_state[0], item)  # type: ignore[arg-type]
