"""Identify processes across restarts, hosts and containers."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any


def host() -> str:
    """Return the name of this host, usable in a file name."""
    return socket.gethostname().replace("/", "_")


def this_process() -> dict[str, Any]:
    """Identify this process, even if its number is used again, or also used in a container."""
    place = [host(), _read("/proc/sys/kernel/random/boot_id"), _target("/proc/self/ns/pid")]
    return {"place": place, "pid": os.getpid(), "started": start_time(os.getpid())}


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
