"""Identify processes across restarts, hosts and containers."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def host() -> str:
    """Return the name of this host, usable in a file name."""
    return socket.gethostname().replace("/", "_")


def this_process() -> dict[str, Any]:
    """Identify this process, even if its number is used again, or also used in a container."""
    place = [host(), _read("/proc/sys/kernel/random/boot_id"), _target("/proc/self/ns/pid")]
    process = {"place": place, "pid": os.getpid(), "started": start_time(os.getpid())}
    return {**process, "job": _job()} if _job() else process


def is_earlier_start(process: Mapping[str, Any]) -> bool:
    """Return whether a process belonged to an earlier start of the SLURM job of this process.

    SLURM starts a job again only when all of its processes have ended, or their host is lost.
    """
    job, ours = process.get("job"), _job()
    if not ours or not isinstance(job, list) or len(job) != len(ours):
        return False
    return bool(job[0] == ours[0] and isinstance(job[1], int) and job[1] < ours[1])


def _job() -> list[Any]:
    """Return number and restarts of the SLURM job; empty without one."""
    number, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    return [number, int(restarts)] if number and restarts.isdecimal() else []


def start_time(pid: object) -> str | None:
    """Return when a process of this host was started; None if it does not run."""
    if status := _read(f"/proc/{pid}/stat"):
        # the name of the command, in parentheses, may contain spaces
        fields = status.rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]
    if os.path.exists("/proc/self/stat") or not isinstance(pid, int):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "running"  # a system without /proc


def parent(pid: int) -> int:
    """Return the parent of a process of this host; 0 if it is not known."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def is_running(pid: int) -> bool:
    """Return whether there is such a process on this host."""
    return start_time(pid) is not None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""
