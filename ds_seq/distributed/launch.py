"""Determine rank and world size from the environment of the launcher."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ds_seq.distributed.contradictions import (
    Started,
    refuse_half_set,
    refuse_lost_hostfile,
    refuse_no_address,
    refuse_other_world,
    refuse_stray,
)
from ds_seq.errors import UserError
from ds_seq.mpi import load_mpi

_DEFAULT_PORT, _LARGEST_PORT = 29500, 2**16 - 1


@dataclass(frozen=True)
class World:
    """The place of this process among all processes of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def device(self) -> torch.device:
        """The GPU of this process, or the CPU."""
        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints messages."""
        return self.rank == 0


def discover(environ: Mapping[str, str]) -> World:
    """Read rank and world size from the launcher's environment variables.

    Launchers are tried in this order: `deepspeed` and `torchrun` (`RANK` and `WORLD_SIZE`); Open
    MPI's `mpirun` (`OMPI_COMM_WORLD_RANK`; within a SLURM step, all its processes have the same
    `SLURM_PROCID`); MPICH's `mpirun` (`PMI_RANK` and `MPI_LOCALRANKID`), for the same reason;
    `srun` (`SLURM_PROCID`); another MPI (`PMI_RANK`, which `srun` may also set). Without any of
    these variables there is one process. An `sbatch` script without `srun` is also one process: it
    has `SLURM_PROCID` but no step.

    Raises:
        UserError: the variables of a launcher are incomplete, or contradict each other.
    """
    env = dict(environ)
    started = _started(env)
    if "RANK" in env and "WORLD_SIZE" in env:
        world = _torch_world(env)
        if started is not None:
            refuse_other_world(env, world.rank, world.size, started)
        refuse_lost_hostfile(env, world.size)
    elif started is None:
        refuse_half_set(env)
        world = World()
    else:
        refuse_stray(env, started)
        world = _slurm_world(env, started) if started.launcher == "srun" else _mpi_world(env)
    if not 0 <= world.rank < world.size:
        raise UserError(
            f"rank {world.rank} does not fit a world of {world.size}; check the launcher"
        )
    if not (world.size > 1) <= world.port <= _LARGEST_PORT:
        raise UserError(
            f"environment: MASTER_PORT={world.port} is no port; set it to a number from 1024 to "
            f"{_LARGEST_PORT}, the same on all nodes"
        )
    return world


def _started(env: dict[str, str]) -> Started | None:
    """Return what `mpirun` or `srun` says, or None if neither has started this process."""
    if "OMPI_COMM_WORLD_RANK" in env:
        return _says(env, "mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "mpirun -n")
    if "PMI_RANK" in env and "MPI_LOCALRANKID" in env:
        return _says(env, "mpirun", "PMI_RANK", "PMI_SIZE", "mpirun -n")
    if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env:
        # within an interactive step, SLURM_NTASKS is that of the allocation
        size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        return _says(env, "srun", "SLURM_PROCID", size, "srun --ntasks")
    if "PMI_RANK" in env:
        return _says(env, "mpirun", "PMI_RANK", "PMI_SIZE", "mpirun -n")
    return None


def _says(env: dict[str, str], launcher: str, rank: str, size: str, fix: str) -> Started:
    return Started(launcher, rank, size, _number(env, rank), _number(env, size), fix)


def _torch_world(env: dict[str, str]) -> World:
    size = _number(env, "WORLD_SIZE")
    local_rank = _number(env, "LOCAL_RANK", 0)
    local_name = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in env else "LOCAL_SIZE"
    local_size = _number(env, local_name, 1)
    if local_name in env and local_rank >= local_size:
        raise UserError(
            f"environment: LOCAL_RANK={local_rank}, but {local_name}={local_size}; local ranks "
            "count from 0 on each node"
        )
    rank = _number(env, "RANK")
    if rank < size:
        refuse_no_address(env, size)
    address, port = env.get("MASTER_ADDR", "127.0.0.1"), _number(env, "MASTER_PORT", _DEFAULT_PORT)
    return World(rank, size, local_rank, local_size, address, port)


def _slurm_world(env: dict[str, str], started: Started) -> World:
    nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_NODELIST", ""))
    # a port per job, so that two jobs on one node do not connect to each other
    port = 15000 + _number(env, "SLURM_JOB_ID", 0) % 20000
    return World(
        started.rank,
        started.size,
        _number(env, "SLURM_LOCALID", 0),
        _tasks_here(env),
        env.get("MASTER_ADDR") or _first_host(nodes),
        _number(env, "MASTER_PORT", port),
    )


def _tasks_here(env: dict[str, str]) -> int:
    """Return the number of tasks of the step on this node, from SLURM's `4(x2),3`."""
    text, node = env.get("SLURM_STEP_TASKS_PER_NODE", ""), _number(env, "SLURM_NODEID", 0)
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,6})\))?", part)
        if match is not None:
            counts += [int(match[1])] * int(match[2] or 1)
    return counts[node] if node < len(counts) else _number(env, "SLURM_NTASKS_PER_NODE", 1)


def _first_host(nodes: str) -> str:
    """Return the first name of a SLURM node list; `scontrol` expands the bracket syntax."""
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
    address, port = _mpi_meeting_point(size, single_node=size == local_size)
    return World(rank, size, local_rank, local_size, address, port)


def _mpi_meeting_point(size: int, single_node: bool) -> tuple[str, int]:
    """Return the address and a free port of rank 0, broadcast to all ranks over MPI."""
    world = load_mpi(size, "set MASTER_ADDR and MASTER_PORT").COMM_WORLD
    names = world.gather(socket.gethostname(), root=0)
    meeting_point = None
    if names is not None:
        name = "127.0.0.1" if single_node else names[0]
        try:
            host = _address_of(name, [] if single_node else names)
            meeting_point = (host, free_port())
        except OSError as error:  # the others are waiting for an answer
            meeting_point = (f"{name!r} ({error.strerror})", 0)
    address, port = world.bcast(meeting_point, root=0)
    if port == 0:
        raise UserError(
            f"mpirun: the first node cannot resolve its own name {address}; set MASTER_ADDR to an "
            "address that all nodes know, and MASTER_PORT"
        )
    return str(address), int(port)


def _address_of(name: str, hosts: Sequence[str]) -> str:
    """Return the address of this host, whose name is a loopback address here on some systems."""
    address = socket.gethostbyname(name)
    for other in hosts:
        if other != name and address.startswith("127."):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((other, 1))  # sends no packet
                address = str(probe.getsockname()[0])
    return address


def _number(env: Mapping[str, str], key: str, default: int | None = None) -> int:
    value = env.get(key)
    if value is None:
        if default is None:
            raise UserError(
                f"environment: {key} is not set, although other variables of its launcher are"
            )
        return default
    # SLURM formats tasks per node as "4(x2),3"
    digits = value.split("(")[0].split(",")[0]
    if re.fullmatch("[0-9]{1,18}", digits) is None:
        raise UserError(f"environment: {key}={value!r} is not a number")
    return int(digits)


def free_port() -> int:
    """Return a TCP port that is currently unused."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
