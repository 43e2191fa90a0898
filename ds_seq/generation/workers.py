"""Several searches at the same time, in threads of one process.

On a CPU two searches with one thread each are about one and a half times as fast as one with two:
the tensors of a decoder step are too small to be shared. PyTorch releases Python's lock in its
kernels, so the threads hardly wait for each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

MOST_WORKERS = 8
"""With more of them, what Python itself does in each step comes to the fore."""


def default_workers(device: torch.device) -> int:
    """How many searches at a time make the best use of a device."""
    return min(torch.get_num_threads(), MOST_WORKERS) if device.type == "cpu" else 1


def map_in_threads(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], workers: int
) -> Generator[ResultT, None, None]:
    """`map`, with several items in work at a time; the threads of PyTorch are shared out.

    Args:
        function: safe to be called from several threads.
        items: any number; only a few more are taken than have been answered.
        workers: how many threads; with 1 everything happens in the caller's.

    Yields:
        The results in the order of the items.
    """
    if workers == 1:
        yield from map(function, items)
        return
    num_threads = torch.get_num_threads()
    each = max(num_threads // workers, 1)
    pool = ThreadPoolExecutor(
        workers, "search", initializer=torch.set_num_threads, initargs=(each,)
    )
    waiting: deque[Future[ResultT]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:  # one more than are in work, so that nobody is idle
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)  # some libraries have one number for all threads
