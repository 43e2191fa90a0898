"""Environment variables, and settings of the interpreter and of the C library."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # parameters of mallopt(3)
_FRONT_KERNELS = 16  # that torch keeps


def keep_freed_memory() -> None:
    """Let the C library keep large freed blocks instead of returning them to the kernel.

    For processes that free and allocate the same megabytes again and again. By default, glibc
    returns each large block immediately, and the kernel zeroes fresh pages for the next one. As a
    consequence, memory use stays at its peak. Does nothing with another C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)  # no separate mappings, which can only be unmapped when freed
    mallopt(_M_TRIM_THRESHOLD, -1)  # never shrink the heap


def keep_few_kernels(most: int) -> None:
    """Limit the kernels that oneDNN keeps prepared for products of earlier shapes.

    A kernel takes about 0.3 MB. By default 1,024 of them are kept twice, by torch and by oneDNN,
    and they lie between the tensors, so that freed memory falls into pieces that fit no other
    batch. What torch has forgotten, oneDNN still knows: finding it takes 0.02 ms, preparing it
    again 0.4 to 1.1 ms. Both read the environment at their first product, after which this has no
    effect in the process. Variables that are set already are left as they are.

    Args:
        most: kernels that oneDNN keeps, those used last.
    """
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(_FRONT_KERNELS))
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(most))


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable inside the block, and restore it afterwards.

    The variable belongs to the whole process, other threads included.

    Args:
        name: its name.
        value: its value inside the block.
    """
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def collector_paused() -> Iterator[None]:
    """Do not look for cycles of objects inside the block, or in a function decorated with this.

    For code that makes a list per sentence and no cycles: it takes a quarter less time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def source_commit() -> str | None:
    """Return the commit of a checkout of ds_seq, with `-dirty` if files differ; else None."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or a checkout of another user
    return done.stdout.strip() or None
