"""Find out which ranks are missing, before the process group waits for them for half an hour.

Ranks meet at a store of rank 0, or of torchrun's agent: the one that torch uses for the process
group, on the same address and port.
"""

from __future__ import annotations

import math
import os
import re
import socket
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist

from ds_seq.distributed.launch import World
from ds_seq.distributed.places import (
    Place,
    contradiction,
    is_loopback,
    name_gloo_interface,
    place_of,
    table,
    unpacked,
)
from ds_seq.errors import UserError

PATIENCE = "DS_SEQ_JOIN_SECONDS"
"""Environment variable: how long ranks wait for each other at the start."""

_PATIENCE, _FIRST_REPORT = 60.0, 15.0  # seconds
_NAME_PATIENCE, _ANSWER_PATIENCE = 20.0, 30.0  # seconds, in which a name is known, a store answers
_SHOWN = 8
_HERE = "here"


def roll_call(world: World) -> dist.Store:
    """Wait until all ranks have joined; after some seconds, report those that have not.

    Returns:
        The store, which must stay open until the process group is initialized.

    Raises:
        UserError: the address does not resolve, nothing answers there, another run uses the port,
            ranks are missing, which are named, or they cannot be one run: they count different
            numbers of processes, or two have one GPU.
    """
    patience = _patience()
    _resolve(world, patience)
    place = f"{world.address}:{world.port}"
    uses_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_host = world.is_first and not uses_agent
    if not is_host:
        _reach(world, patience)
    store = _open_store(world, patience, is_host)
    # The store of an agent outlives its workers. Ours does not, and there the counts of agents
    # differ: one whose own worker has not failed does not count a restart.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if uses_agent else "0"
    calls = dist.PrefixStore(f"ds_seq/{attempt}", store)
    process = f"{socket.gethostname()}:{os.getpid()}"
    claimed = calls.compare_set(str(world.rank), "", process).decode()
    if claimed != process:
        raise UserError(
            f"rank {world.rank}: another process ({claimed}) is rank {world.rank} at {place}, "
            "perhaps of another run; give the launcher another port (deepspeed --master_port, or "
            "MASTER_PORT)"
        )
    calls.set(_place_key(world.rank), place_of(world).packed())
    if world.is_first:
        _call(calls, world, patience, place)
        places = _places(calls, world.size)
        problem = contradiction(places)
        calls.set("all", problem or _HERE)
        if problem is not None:
            raise UserError("\n".join([problem, *table(places)]))
        # the name of this host may be a loopback address here: ask for the way to another one
        others = [place.address for place in places if not is_loopback(place.address)]
        name_gloo_interface(next(iter(others), world.address))
        return store
    name_gloo_interface(world.address)
    try:
        _wait_for_all(calls, world, patience, place)
        answer = calls.get("all").decode()
        if answer != _HERE:
            raise UserError(f"rank {world.rank}: {answer}")
    except dist.DistNetworkError as error:
        raise UserError(
            f"rank {world.rank}: rank 0 at {place} has ended while ranks were joining; see its "
            "messages"
        ) from error
    return store


def _place_key(rank: int) -> str:
    return f"place/{rank}"


def _places(calls: dist.Store, size: int) -> list[Place]:
    keys = [_place_key(rank) for rank in range(size)]
    calls.wait(keys, timedelta(seconds=_ANSWER_PATIENCE))
    return [unpacked(text) for text in calls.multi_get(keys)]


def _wait_for_all(calls: dist.Store, world: World, patience: float, place: str) -> None:
    try:
        calls.wait(["all"], timedelta(seconds=patience))
    except dist.DistStoreError as error:
        raise _missing(calls, world, patience, place) from error


class _Report:
    """Prints one line after some seconds of waiting."""

    def __init__(self, is_heard: bool = True) -> None:
        self._when = time.monotonic() + _FIRST_REPORT if is_heard else math.inf

    def due(self, text: str) -> None:
        """Print `text` if it is time."""
        if time.monotonic() > self._when:
            self._when = math.inf
            print(f"ds-seq: {text}", file=sys.stderr, flush=True)


def _open_store(world: World, patience: float, is_host: bool) -> dist.Store:
    """Open the store in a thread: a server of another kind, which never answers, would block it."""
    opened: list[dist.Store | Exception] = []

    def open_it() -> None:
        try:
            store = dist.TCPStore(
                world.address,
                world.port,
                world.size,
                is_master=is_host,
                timeout=timedelta(seconds=patience),
                wait_for_workers=False,
                multi_tenant=True,  # torch opens it again
            )
        except Exception as error:
            opened.append(error)
        else:
            opened.append(store)

    thread = threading.Thread(target=open_it, daemon=True)
    thread.start()
    thread.join(min(patience, _ANSWER_PATIENCE) + 1.0)
    if not opened:
        raise UserError(
            f"rank {world.rank}: what answers at {world.address}:{world.port} is not rank 0 of a "
            "run; give the launcher another port (deepspeed --master_port, or MASTER_PORT)"
        )
    if isinstance(opened[0], Exception):
        raise opened[0]
    return opened[0]


def _reach(world: World, patience: float) -> None:
    """Wait until something listens at the address."""
    started = time.monotonic()
    report = _Report(world.local_rank == 0 or world.rank == 1)
    while True:
        try:
            socket.create_connection((world.address, world.port), timeout=5.0).close()
            return
        except OSError as error:
            report.due(f"rank {world.rank} waits for rank 0 at {world.address}:{world.port}")
            if time.monotonic() - started > patience:
                raise UserError(
                    f"rank {world.rank}: rank 0 did not answer at {world.address}:{world.port} "
                    f"within {patience:g} s ({error.strerror or error}); see its messages, and "
                    "check MASTER_ADDR and MASTER_PORT of all nodes. "
                    f"{PATIENCE} sets a longer time for slow nodes"
                ) from error
        time.sleep(0.2)


def _call(calls: dist.Store, world: World, patience: float, place: str) -> None:
    """Wait on rank 0 for all others."""
    started, report = time.monotonic(), _Report()
    while missing := _absent(calls, world.size):
        if time.monotonic() - started > patience:
            raise _missing(calls, world, patience, place)
        report.due(f"waiting at {place} for {_ranks(missing)} of {world.size}")
        time.sleep(0.05)


def _absent(calls: dist.Store, size: int) -> list[int]:
    keys = [str(rank) for rank in range(size)]
    return (
        [] if calls.check(keys) else [rank for rank in range(size) if not calls.check([keys[rank]])]
    )


def _missing(calls: dist.Store, world: World, patience: float, place: str) -> UserError:
    absent = _absent(calls, world.size)
    present = [rank for rank in range(world.size) if rank not in absent]
    keys = [key for key in map(_place_key, present) if calls.check([key])]
    for place_there in map(unpacked, calls.multi_get(keys) if keys else []):
        if place_there.size != world.size:
            return UserError(
                f"rank {world.rank} counts {world.size} processes, but one on {place_there.host} "
                f"counts {place_there.size}; start all with the same number"
            )
    return UserError(
        f"rank {world.rank}: {_ranks(absent)} of {world.size} did not join at {place} within "
        f"{patience:g} s; see their messages, and check that all nodes start their processes with "
        f"this MASTER_ADDR and MASTER_PORT. {PATIENCE} sets a longer time for slow nodes"
    )


def _ranks(ranks: list[int]) -> str:
    more = f" and {len(ranks) - _SHOWN} more" if len(ranks) > _SHOWN else ""
    return f"rank(s) {', '.join(map(str, ranks[:_SHOWN]))}{more}"


def _resolve(world: World, patience: float) -> None:
    """Wait a little for a name that is new to the network, or as long as the user has set."""
    limit = patience if PATIENCE in os.environ else _NAME_PATIENCE
    started, report = time.monotonic(), _Report(world.local_rank == 0)
    while True:
        try:
            socket.getaddrinfo(world.address, None)
            return
        except OSError as error:
            report.due(f"rank {world.rank} waits for the name {world.address} of rank 0's node")
            if time.monotonic() - started > limit:
                raise UserError(
                    f"rank {world.rank} on {socket.gethostname()}: cannot resolve MASTER_ADDR "
                    f"{world.address!r} ({error.strerror}); set it to a name or an IP address of "
                    "the first node that all nodes know"
                ) from error
        time.sleep(1.0)


def _patience() -> float:
    text = os.environ.get(PATIENCE)
    if text is None:
        return _PATIENCE
    if re.fullmatch("[0-9]{1,5}", text) is None or int(text) == 0:
        raise UserError(
            f"environment: {PATIENCE}={text!r} is not a whole number of seconds from 1 to 99999"
        )
    return float(text)
