"""Who am I among the processes, and the few collectives that are not DeepSpeed's business.

`discover` reads the environment of our launcher; `init` brings up the process group.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ds_seq.attention_kernels import avoid_cudnn_attention
from ds_seq.errors import EXIT_USER_ERROR, UserError

_TIMEOUT = timedelta(minutes=30)
_DEFAULT_PORT = 29500
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # parameters of mallopt(3)


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def device(self) -> torch.device:
        """The accelerator of this process, or the CPU."""
        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0


def discover(environ: Mapping[str, str]) -> World:
    """Read rank and world size from the launcher's environment variables.

    Asked in this order: ``deepspeed`` and ``torchrun`` (``RANK``), Open MPI's ``mpirun``
    (``OMPI_COMM_WORLD_RANK``; within a SLURM step its processes have the step's ``SLURM_PROCID``,
    all the same), ``srun`` (``SLURM_PROCID``), MPICH's ``mpirun`` (``PMI_RANK``, which ``srun`` may
    set too); none of them: one process. An ``sbatch`` script without ``srun`` is one process too:
    it has ``SLURM_PROCID`` but no step.

    Raises:
        UserError: variables of one launcher that contradict each other.
    """
    env = dict(environ)
    if "RANK" in env and "WORLD_SIZE" in env:
        world = World(
            _number(env, "RANK"),
            _number(env, "WORLD_SIZE"),
            _number(env, "LOCAL_RANK", 0),
            _number(env, "LOCAL_WORLD_SIZE", _number(env, "LOCAL_SIZE", 1)),
            env.get("MASTER_ADDR", "127.0.0.1"),
            _number(env, "MASTER_PORT", _DEFAULT_PORT),
        )
    elif "OMPI_COMM_WORLD_RANK" in env:
        world = _mpi_world(env)
    elif "SLURM_PROCID" in env and "SLURM_STEP_ID" in env:
        world = _slurm_world(env)
    elif "PMI_RANK" in env:
        world = _mpi_world(env)
    else:
        world = World()
    if not 0 <= world.rank < world.size:
        raise UserError(
            f"rank {world.rank} does not fit a world of {world.size}: check the launcher"
        )
    return world


def _slurm_world(env: dict[str, str]) -> World:
    nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_NODELIST", ""))
    # a port of the job's own, so that two jobs on one node do not meet
    port = 15000 + _number(env, "SLURM_JOB_ID", 0) % 20000
    return World(
        _number(env, "SLURM_PROCID"),
        _number(env, "SLURM_NTASKS", 1),
        _number(env, "SLURM_LOCALID", 0),
        _number(env, "SLURM_NTASKS_PER_NODE", 1),
        env.get("MASTER_ADDR") or _first_host(nodes),
        _number(env, "MASTER_PORT", port),
    )


def _first_host(nodes: str) -> str:
    """First name of a SLURM node list; ``scontrol`` knows the bracket syntax better than we do."""
    if not nodes:
        return "127.0.0.1"
    if "[" not in nodes:
        return nodes.split(",")[0]
    try:
        names = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"cannot read SLURM's node list {nodes!r} (scontrol: {error}); set MASTER_ADDR"
        ) from error
    return names[0]


def _mpi_world(env: dict[str, str]) -> World:
    open_mpi = "OMPI_COMM_WORLD_RANK" in env
    prefix = "OMPI_COMM_WORLD_" if open_mpi else "PMI_"
    rank, size = _number(env, prefix + "RANK"), _number(env, prefix + "SIZE")
    local_rank = _number(env, "OMPI_COMM_WORLD_LOCAL_RANK" if open_mpi else "MPI_LOCALRANKID", 0)
    local_size = _number(env, "OMPI_COMM_WORLD_LOCAL_SIZE" if open_mpi else "MPI_LOCALNRANKS", 1)
    if "MASTER_ADDR" in env:
        port = _number(env, "MASTER_PORT", _DEFAULT_PORT)
        return World(rank, size, local_rank, local_size, env["MASTER_ADDR"], port)
    address, port = _mpi_meeting_point(single_node=size == local_size)
    return World(rank, size, local_rank, local_size, address, port)


def _mpi_meeting_point(single_node: bool) -> tuple[str, int]:
    """Rank 0's address and a free port of it, told to all ranks over MPI."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"mpirun was used but mpi4py cannot load MPI ({error}); install an MPI library "
            "or set MASTER_ADDR and MASTER_PORT"
        ) from error
    mine = None
    if MPI.COMM_WORLD.Get_rank() == 0:
        host = "127.0.0.1" if single_node else socket.gethostbyname(socket.gethostname())
        mine = (host, free_port())
    address, port = MPI.COMM_WORLD.bcast(mine, root=0)
    return str(address), int(port)


def _number(env: Mapping[str, str], key: str, default: int | None = None) -> int:
    value = env.get(key)
    if value is None:
        if default is None:
            raise UserError(
                f"environment: {key} is not set, though its launcher's other variables are"
            )
        return default
    # SLURM writes "4(x2),3" for tasks per node
    digits = value.split("(")[0].split(",")[0]
    if not digits.isdigit():
        raise UserError(f"environment: {key}={value!r} is not a number")
    return int(digits)


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def init(world: World) -> None:
    """Bring up the process group and tell DeepSpeed what kind of machine this is.

    NCCL on GPUs, gloo on CPUs. Does nothing when it is up already.

    Raises:
        UserError: the ranks cannot meet at the address and port they were given.
    """
    import_deepspeed()
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if dist.is_initialized():
        return
    on_cpu = world.device.type == "cpu"
    if on_cpu:
        # a C++ helper for collectives among CPU ranks of one node, compiled at first use for one to
        # two minutes (and needing a compiler); gloo does the same without
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # the CPU accelerator answers None, read as "no"; torch's CPU kernels do have fp16
        get_accelerator().is_fp16_supported = lambda: True
    else:
        torch.cuda.set_device(world.device)
        avoid_cudnn_attention()
    os.environ.update(
        RANK=str(world.rank),
        WORLD_SIZE=str(world.size),
        LOCAL_RANK=str(world.local_rank),
        LOCAL_SIZE=str(world.local_size),
        MASTER_ADDR=world.address,
        MASTER_PORT=str(world.port or free_port()),
    )
    try:
        deepspeed.init_distributed("gloo" if on_cpu else "nccl", timeout=_TIMEOUT, verbose=False)
    except dist.DistNetworkError as error:
        raise UserError(
            f"rank {world.rank} cannot meet the others at {world.address}:"
            f"{os.environ['MASTER_PORT']} ({str(error).split(', name:')[0].strip()}); another run "
            "may use that port: give the launcher another one (deepspeed --master_port, or "
            "MASTER_PORT)"
        ) from error


def import_deepspeed() -> None:
    """Import DeepSpeed without the linker errors of its probes for libraries that nobody asked for.

    What was printed is shown only if the import fails.
    """
    if "deepspeed" in sys.modules:
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as printed:
        stderr = os.dup(2)
        os.dup2(printed.fileno(), 2)  # the probes are child processes, so sys.stderr is not enough
        try:
            import deepspeed  # noqa: F401
        except BaseException:
            printed.seek(0)
            os.write(stderr, printed.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def keep_freed_memory() -> None:
    """Let the C library keep large freed blocks instead of handing them back to the kernel.

    On a CPU every step frees and allocates the same hundreds of megabytes. glibc gives each large
    block back at once, and the kernel zeroes fresh pages for the next one: a sixth of the processor
    time of a training step (`benchmarks/README.md`). Memory in use then stays at its peak. Does
    nothing for a process with a GPU, or on another C library.
    """
    if torch.cuda.is_available() or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)  # no block of its own mapping, which could only be unmapped
    mallopt(_M_TRIM_THRESHOLD, -1)  # never shrink the heap


def quiet_deepspeed() -> None:
    """Let DeepSpeed speak of warnings and errors only; its engine greets with pages of settings."""
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"deepspeed\..*")
    warnings.filterwarnings("ignore", module=r"torch\.distributed\..*")


def shutdown() -> None:
    """Leave the process group, so that no rank waits for one that has ended."""
    if dist.is_initialized():
        dist.destroy_process_group()
        # A thread of gloo lets go of its last tensors after the collective has returned. If the
        # interpreter ends meanwhile, it aborts the process; sleeping lets it have Python's lock.
        time.sleep(0.2)


@contextmanager
def joined() -> Iterator[World]:
    """The processes of a command, together as long as the block runs; one alone joins nobody."""
    world = discover(os.environ)
    keep_freed_memory()
    if world.size > 1:
        init(world)
        quiet_deepspeed()
    try:
        yield world
    finally:
        shutdown()


def world_size() -> int:
    """Processes of the group; 1 where there is none."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process; 0 where there is no group."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` is set on any rank; a collective."""
    if world_size() == 1:
        return flag
    return bool(sum_over_ranks(torch.tensor([float(flag)])).item())


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum a float tensor over all ranks; the answer is where ``values`` was. A collective."""
    if world_size() == 1:
        return values
    total = values.to(_meeting_device())
    if total is values:
        total = values.clone()
    dist.all_reduce(total)
    return total.to(values.device)


def gather_pieces(pieces: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """All ranks' tensors, on all: the first of each, in order of rank, then their second, ...

    Two collectives, of lengths and of contents, which are padded to the longest rank's.

    Args:
        pieces: (C, n) each; as many on every rank, n at will.
    """
    if world_size() == 1 or not pieces:
        return list(pieces)
    device = _meeting_device()
    lengths = torch.tensor([piece.shape[1] for piece in pieces], device=device)
    all_lengths = [torch.empty_like(lengths) for _ in range(world_size())]
    dist.all_gather(all_lengths, lengths)
    longest = int(torch.stack(all_lengths).sum(1).max())
    mine = torch.cat(list(pieces), 1).to(device)
    padded = mine.new_zeros(mine.shape[0], longest)
    padded[:, : mine.shape[1]] = mine
    everyone = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(everyone, padded)
    split = [
        all_of_rank[:, : int(of_rank.sum())].to(pieces[0].device).split(of_rank.tolist(), dim=1)
        for all_of_rank, of_rank in zip(everyone, all_lengths, strict=True)
    ]
    return [piece for one_of_each_rank in zip(*split, strict=True) for piece in one_of_each_rank]


def gather_objects(value: Any) -> list[Any] | None:
    """All ranks' objects, in order of rank, on rank 0; ``None`` elsewhere. A collective."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, gathered, dst=0)
    return gathered


def broadcast_object(value: Any) -> Any:
    """Rank 0's object, on all ranks. A collective."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def shared_errors() -> Iterator[None]:
    """Let a `UserError` of any rank end all of them, told once.

    A collective at its end: all ranks enter and leave it. The ranks that found nothing wrong would
    otherwise wait for the others in their next collective, and those that did would all print.
    """
    mine: str | None = None
    try:
        yield
    except UserError as error:
        mine = str(error)
    if world_size() == 1:
        if mine is not None:
            raise UserError(mine)
        return
    messages: list[str | None] = [None] * world_size()
    dist.all_gather_object(messages, mine)
    told = list(dict.fromkeys(message for message in messages if message is not None))
    if not told:
        return
    if rank() == 0:
        raise UserError("\n".join(told))
    sys.exit(EXIT_USER_ERROR)


def _meeting_device() -> torch.device:
    """Where tensors must be for a collective."""
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
