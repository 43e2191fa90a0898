"""Run a function in several gloo processes, for real, and never leave one behind."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing as mp
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import deepspeed
import torch

from ds_seq import distributed
from tests.ports import free_port

# DeepSpeed finds out, with a compiler, which of its C++ parts can be built: here once, and not in
# every process that is forked.
deepspeed.ops.__compatible_ops__  # noqa: B018
distributed.import_zero()  # the first engine of each would, for seconds


_PR_SET_PDEATHSIG = 1  # linux/prctl.h

Launcher = Callable[[int, int, int], dict[str, str]]
"""Rank, world size and port -> what a launcher sets in the environment."""


def torch_launcher(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The variables of torch's and DeepSpeed's launchers."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def run_distributed(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 60.0,
    launcher: Launcher = torch_launcher,
) -> list[Any]:
    """Call ``function(*args)`` in ``world_size`` processes of one gloo group.

    Workers are forked, so that torch and DeepSpeed are imported once; they must not have used a
    thread pool before, see ``conftest.py``.

    Args:
        function: runs on every rank; ``ds_seq.distributed`` knows rank and world size.
        world_size: number of processes.
        args: its arguments.
        timeout: seconds after which all processes are killed.
        launcher: gives the environment of each rank.

    Returns:
        What the function returned, by rank; must be picklable.

    Raises:
        AssertionError: a rank failed (with its traceback), or the time is up.
    """
    context = mp.get_context("fork")
    port = free_port()
    pipes, processes = [], []
    for rank in range(world_size):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_worker,
            args=(sender, launcher(rank, world_size, port), function, args),
            daemon=True,
        )
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        return _collect(pipes, time.monotonic() + timeout, timeout)
    finally:
        _end(processes)


def _worker(
    sender: Connection,
    environ: dict[str, str],
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    gc.freeze()  # DeepSpeed collects garbage often: let it not walk through all that was inherited
    os.setsid()  # one signal then reaches whatever the function itself starts
    # pytest, killed by `timeout` or the kernel, can end nobody any more
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.update(environ)
    torch.set_num_threads(1)
    try:
        distributed.init(distributed.discover(os.environ))
        distributed.quiet_deepspeed()
        _send(sender, True, function(*args))
    except BaseException:
        _send(sender, False, traceback.format_exc())
    finally:
        distributed.shutdown()
        sender.close()


def _send(sender: Connection, succeeded: bool, value: Any) -> None:
    # plain pickle copies tensors; multiprocessing's own would share memory with a process that ends
    sender.send_bytes(pickle.dumps((succeeded, value)))


def _collect(pipes: list[Connection], deadline: float, timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        for rank, pipe in enumerate(pipes):
            if rank in results or not pipe.poll(0.02):
                continue
            try:
                succeeded, value = pickle.loads(pipe.recv_bytes())
            except EOFError:
                raise AssertionError(f"rank {rank} died without a word") from None
            assert succeeded, f"rank {rank} failed:\n{value}"
            results[rank] = value
        missing = sorted(set(range(len(pipes))) - set(results))
        assert time.monotonic() < deadline or not missing, (
            f"ranks {missing} did not finish within {timeout:g} s"
        )
    return [results[rank] for rank in range(len(pipes))]


def _end(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.join(timeout=2)
        if process.is_alive() and process.pid is not None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                process.kill()
            process.join()
