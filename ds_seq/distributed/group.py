"""The process group: initialize it, leave it, and query the rank and world size."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from ds_seq import launcher
from ds_seq.activity import HANG_SECONDS
from ds_seq.distributed.device import choose_gpu_kernels, keep_freed_memory
from ds_seq.distributed.launch import World, discover, free_port
from ds_seq.distributed.quiet import import_deepspeed, late_collectives, quiet_deepspeed
from ds_seq.distributed.roll_call import roll_call
from ds_seq.distributed.watchdog import Watchdog, watching
from ds_seq.errors import UserError

_TIMEOUT = timedelta(minutes=30)
_store: dist.Store | None = None  # where the ranks have met
_own: Mapping[str, str] = {}  # variables that `init` sets
_replaced: Mapping[str, str | None] = {}  # what they were before; empty while they are not set


def init(world: World) -> None:
    """Initialize the process group and select DeepSpeed's accelerator.

    Uses NCCL on GPUs and gloo on CPUs. Does nothing if the group is already initialized.

    Raises:
        UserError: the ranks cannot connect at the given address and port, or some do not come.
    """
    import_deepspeed()
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if dist.is_initialized():
        if not _replaced:
            _announce(_own)
        return
    on_cpu = world.device.type == "cpu"
    if on_cpu:
        # a C++ helper for collectives among CPU ranks of one node; on first use it is compiled,
        # which takes one to two minutes and needs a compiler. gloo does the same without it
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # the CPU accelerator returns None, which counts as "no", but torch's CPU kernels have fp16
        get_accelerator().is_fp16_supported = lambda: True
    else:
        torch.cuda.set_device(world.device)
        choose_gpu_kernels()
    variables = {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(world.local_rank),
        "MASTER_ADDR": world.address,
        "MASTER_PORT": str(world.port or free_port()),
    }
    if world.local_rank < world.local_size:  # else the launcher has not said how many there are
        variables["LOCAL_SIZE"] = str(world.local_size)
    _announce(variables)
    global _store
    try:
        _store = roll_call(world) if world.size > 1 else None
        backend = "gloo" if on_cpu else "nccl"
        with late_collectives():
            deepspeed.init_distributed(backend, timeout=_TIMEOUT, verbose=False)
    except UserError:
        withdraw()
        raise
    except dist.DistNetworkError as error:
        withdraw()
        raise UserError(
            f"rank {world.rank} cannot connect to the others at {world.address}:"
            f"{variables['MASTER_PORT']} ({str(error).split(', name:')[0].strip()}); another run "
            "may use that port: give the launcher another one (deepspeed --master_port, or "
            "MASTER_PORT)"
        ) from error


def _announce(variables: Mapping[str, str]) -> None:
    """Set environment variables for DeepSpeed, and remember what they were."""
    global _own, _replaced
    _own, _replaced = variables, {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)


def withdraw() -> None:
    """Restore the environment of the launcher; the group stays, for a later `init`.

    What this process has said to DeepSpeed must not reach a process that it starts later: that one
    would wait at the port of this one.
    """
    global _replaced
    for name, value in _replaced.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _replaced = {}


def shutdown() -> None:
    """Leave the process group, so that no rank waits for one that has ended."""
    global _store
    if dist.is_initialized():
        dist.destroy_process_group()
        _store = None
        withdraw()
        # A gloo thread releases its last tensors after the collective has returned. If the
        # interpreter exits meanwhile, the thread aborts the process; sleeping gives it the GIL.
        time.sleep(0.2)


@contextmanager
def joined(hang_seconds: float | None) -> Iterator[World]:
    """Join the process group for the duration of the block; a single process needs no group.

    Args:
        hang_seconds: limit of the watchdog, see `ds_seq.distributed.watchdog`; None: there is none.
    """
    world = discover(os.environ)
    keep_freed_memory()
    if world.size > 1:
        init(world)
        quiet_deepspeed()
    try:
        with watched(world, hang_seconds):
            yield world
    finally:
        shutdown()


def watched(world: World, seconds: float | None = HANG_SECONDS) -> AbstractContextManager[Watchdog]:
    """Watch this rank for the duration of the block; see `ds_seq.distributed.watchdog.watching`."""
    launcher.watch()  # under a launcher, but not as one of our commands
    return watching(world, _store, seconds)


def meeting_store() -> dist.Store | None:
    """Return the store where the ranks have met; None without a group, or with a single process."""
    return _store


def world_size() -> int:
    """Return the number of processes in the group; 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process; 0 without a group."""
    return dist.get_rank() if dist.is_initialized() else 0
