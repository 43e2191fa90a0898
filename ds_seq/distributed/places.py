"""Where each rank of a run is: host, address, device. A table of them, and what contradicts it."""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import torch

from ds_seq.distributed.launch import World


class Place(NamedTuple):
    """Where a rank is.

    Attributes:
        host: name of the machine.
        address: its address in the network of rank 0.
        size: number of processes that the rank counts.
        device: `cpu`, or `cuda:N` as the process numbers its GPUs.
        gpu: name of the GPU; empty on a CPU.
        uuid: identity of the GPU, the same for all processes; empty on a CPU.
        visible: number of GPUs that the process sees.
    """

    host: str
    address: str
    size: int
    device: str
    gpu: str = ""
    uuid: str = ""
    visible: int = 0

    def packed(self) -> str:
        """Return a text from which `unpacked` makes this place."""
        return json.dumps(list(self))


def unpacked(text: str | bytes) -> Place:
    """Return the place of a text from `Place.packed`."""
    return Place(*json.loads(text))


def place_of(world: World) -> Place:
    """Return where this process is."""
    host, address, device = socket.gethostname(), own_address(world.address), world.device
    if device.type != "cuda":
        return Place(host, address, world.size, device.type)
    properties = torch.cuda.get_device_properties(device)
    return Place(
        host,
        address,
        world.size,
        str(device),
        properties.name,
        str(properties.uuid),
        torch.cuda.device_count(),
    )


def own_address(towards: str) -> str:
    """Return the address of this machine towards another; no packet is sent to find it."""
    try:
        found = socket.getaddrinfo(towards, 1, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:  # reported when the ranks meet
        return "?"


def name_gloo_interface(towards: str) -> None:
    """Let gloo listen where other hosts reach this one.

    gloo listens at the address of the host's own name. Debian writes that name into `/etc/hosts` as
    127.0.1.1, where only processes of the same host can connect. A `GLOO_SOCKET_IFNAME` that is set
    stays.

    Args:
        towards: address of another host of the run, or of this one if there is no other.
    """
    address = own_address(towards)
    if "GLOO_SOCKET_IFNAME" in os.environ or is_loopback(address):
        return
    try:
        listens_at = socket.gethostbyname(socket.gethostname())
    except OSError:
        listens_at = ""
    name = _interface(address) if not listens_at or is_loopback(listens_at) else None
    if name is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = name


def is_loopback(address: str) -> bool:
    """Return whether only processes of one host can connect to an address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # one that was not found
        return True


def _interface(address: str) -> str | None:
    """Return the network interface with an IPv4 address, or None."""
    get_address = 0x8915  # SIOCGIFADDR
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, get_address, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has no such address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def seen_from_others(places: Sequence[Place]) -> list[Place]:
    """Return the places with an address of this host that others reach, where it is a loopback one.

    Args:
        places: those of all ranks, of which the first is on this host.
    """
    others = [place.address for place in places if not is_loopback(place.address)]
    if not others:
        return list(places)
    here = own_address(others[0])
    return [
        place._replace(address=here)
        if place.host == places[0].host and is_loopback(place.address)
        else place
        for place in places
    ]


def table(places: Sequence[Place]) -> list[str]:
    """Return a line per host: its ranks and their devices.

    Args:
        places: those of all ranks, in the order of the ranks.
    """
    hosts: dict[tuple[str, str], list[int]] = {}
    for rank, place in enumerate(places):
        hosts.setdefault((place.host, place.address), []).append(rank)
    rows = [("host", "address", "ranks", "devices")]
    rows += [
        (host, address, _spans(ranks), _devices([places[rank] for rank in ranks]))
        for (host, address), ranks in hosts.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]


def _spans(numbers: Sequence[int]) -> str:
    """Return `0-3,8` for [0, 1, 2, 3, 8]."""
    spans = []
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        spans.append(f"{members[0]}-{members[-1]}" if len(members) > 1 else str(members[0]))
    return ",".join(spans)


def _devices(places: Sequence[Place]) -> str:
    if all(place.device == "cpu" for place in places):
        return "cpu"
    models = dict.fromkeys(place.gpu for place in places if place.gpu)
    gpus = [place for place in places if place.uuid or place.gpu]
    indices = sorted({int(place.device.partition(":")[2]) for place in gpus})
    own = len(gpus) > 1 and all(place.visible == 1 for place in gpus)
    text = f"{len(gpus)} GPUs, one visible to each" if own else f"cuda:{_spans(indices)}"
    unused = max(place.visible for place in gpus) - len(indices)
    more = f", {unused} more unused" if unused > 0 else ""
    return f"{text} ({', '.join(models)}){more}"


def contradiction(places: Sequence[Place]) -> str | None:
    """Return why these processes cannot be one run, or None.

    Args:
        places: those of all ranks, in the order of the ranks.
    """
    for rank, place in enumerate(places):
        if place.size != places[0].size:
            return (
                f"rank {rank} on {place.host} counts {place.size} processes, and rank 0 on "
                f"{places[0].host} counts {places[0].size}; start all with the same number"
            )
    owners: dict[str, int] = {}
    for rank, place in enumerate(places):
        first = owners.setdefault(place.uuid, rank) if place.uuid else rank
        if first != rank:
            return (
                f"ranks {first} and {rank} have the same GPU, {place.device} ({place.gpu}) of "
                f"{place.host}; start one process per GPU, each with a LOCAL_RANK of its own"
            )
    kinds = {place.device.partition(":")[0]: rank for rank, place in enumerate(places)}
    if len(kinds) > 1:
        rank = kinds["cpu"]
        return (
            f"rank {rank} on {places[rank].host} has no GPU, and rank {kinds['cuda']} on "
            f"{places[kinds['cuda']].host} has one; see `nvidia-smi` there, or give all ranks "
            "CUDA_VISIBLE_DEVICES="
        )
    return None


def notes(env: Mapping[str, str], world: World) -> list[str]:
    """Return lines about processes that belong to no run, or to another one, although started.

    Args:
        env: the environment of this process.
        world: the processes of its run.
    """
    tasks = env.get("SLURM_STEP_NUM_TASKS", "")
    groups = env.get("GROUP_WORLD_SIZE", env.get("CROSS_SIZE", ""))
    if "SLURM_STEP_ID" in env and groups == "1" and tasks.isdecimal() and int(tasks) > 1:
        launcher = "torchrun --nnodes" if "GROUP_WORLD_SIZE" in env else "deepspeed --hostfile"
        return [
            f"srun has started {tasks} tasks, and this run has the processes of one; if they are "
            f"meant to be one run, see {launcher}"
        ]
    allocated = env.get("SLURM_NTASKS", "")
    is_alone = world.size == 1 and "SLURM_JOB_ID" in env and "SLURM_STEP_ID" not in env
    if is_alone and allocated.isdecimal() and int(allocated) > 1:
        return [
            f"this run is one process in a SLURM job of {allocated} tasks; srun starts all of them"
        ]
    return []
