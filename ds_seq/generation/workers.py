"""Parallel searches in threads of one process.

On a CPU, two searches with one thread each are about one and a half times as fast as one search
with two threads, because the tensors of a decoder step are too small to be divided between threads.
PyTorch releases Python's global interpreter lock in its kernels, so the threads hardly wait for
each other.
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
"""Most parallel searches; with more, the Python code of each step dominates."""


def default_workers(device: torch.device) -> int:
    """Return the number of parallel searches that makes the best use of a device."""
    return min(torch.get_num_threads(), MOST_WORKERS) if device.type == "cpu" else 1


def map_in_threads(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], workers: int
) -> Generator[ResultT, None, None]:
    """Apply a function to items in parallel threads, which divide PyTorch's threads among them.

    Args:
        function: thread-safe function.
        items: the items; read only slightly ahead of the results.
        workers: number of threads; with 1, the function runs in the calling thread.

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
            if len(waiting) > workers:  # one more than there are threads, so that none is idle
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)  # some libraries share the number among all threads
