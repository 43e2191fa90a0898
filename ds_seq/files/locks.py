"""Locks between processes, which no file system needs to support."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from glob import escape
from pathlib import Path
from types import TracebackType
from typing import Any

from ds_seq.errors import UserError
from ds_seq.files.atomic import writing
from ds_seq.files.process import host, is_earlier_start, is_running, start_time, this_process
from ds_seq.records import read_json

LOCK_FILE = ".lock"
"""Name of the lock file in a folder that is locked with all it holds."""
RENEWING = "ds-seq lock"
"""Name of the threads that renew locks."""

_ATTEMPT = re.compile(r"\.(\d+)@(.+?)(?:\.stale)?$")  # process and host
_RENEWED, _SILENT = 20.0, 180.0  # seconds between signs of life of a lock, and until it is stale


class Lock:
    """Exclusive use of a run, a data folder, a cache or an output by one process at a time.

    The lock is a file that names host and process, and is renewed every few seconds. It needs no
    support of the file system for locks, so it works on network file systems too. A lock is stale,
    and replaced, if its process has ended on this host, if it belongs to an earlier start of this
    SLURM job, or if a process of another host (or container) has given no sign of life for three
    minutes. A context manager.

    Args:
        path: the lock file. Missing folders are created, and removed again if nothing was written.
        subject: what is locked, for the message.
        advice: what to do instead of waiting.

    Raises:
        UserError: another process holds the lock, or the file cannot be written.
    """

    def __init__(self, path: Path, subject: str | Path, advice: str) -> None:
        self._made = [folder for folder in path.parents if not folder.exists()]
        record = {**this_process(), "command": " ".join(sys.argv[:4]), "since": time.time()}
        text = json.dumps(record)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f"{path.name}.{os.getpid()}@{host()}")
            try:
                new.write_text(text, encoding="utf-8")
                while not _link(new, path):
                    holder, age = _holder(path, new)
                    if _is_alive(holder, age):
                        raise UserError(_explain_held(path, subject, holder, advice))
                    _take_away(path, holder)
            finally:
                new.unlink(missing_ok=True)
            for other in path.parent.glob(f"{escape(path.name)}.*@*"):
                if _is_left(other):
                    other.unlink(missing_ok=True)
        stop = threading.Event()
        threading.Thread(target=_renew, args=(path, stop), daemon=True, name=RENEWING).start()
        # also at the end of the process and when nothing refers to the lock any more
        self._release = weakref.finalize(self, _release, path, text, stop, self._made)

    def release(self) -> None:
        """Give the lock back; does nothing if that has been done."""
        self._release()

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def is_locked(path: Path) -> bool:
    """Return whether a process that is alive holds the lock; writes nothing."""
    holder, age = None, 0.0
    try:
        age = time.time() - path.stat().st_mtime
        holder = read_json(path, dict[str, Any], "")
    except FileNotFoundError:
        return False
    except (OSError, UserError):  # it is being written, or may not be read
        pass
    return _is_alive(holder, age)


def _is_left(attempt: Path) -> bool:
    """Return whether a killed process has left this file of its attempt to get a lock."""
    writer = _ATTEMPT.search(attempt.name)
    if writer is not None and writer[2] == host() and not is_running(int(writer[1])):
        return True
    with suppress(FileNotFoundError):  # removed just now by its writer
        return time.time() - attempt.stat().st_mtime > _SILENT
    return False


def _link(new: Path, path: Path) -> bool:
    """Create a lock file with its content unless it exists."""
    try:
        os.link(new, path)
    except FileExistsError:
        return new.stat().st_nlink > 1  # NFS may repeat a request whose answer was lost
    except OSError:  # a file system without hard links
        try:
            with open(path, "xb") as file:
                file.write(new.read_bytes())
        except FileExistsError:
            return False
    return True


def _holder(path: Path, now: Path) -> tuple[dict[str, Any] | None, float]:
    """Return the record of a lock, None if it cannot be read, and its age in seconds.

    The age is by the clock of the file system: `now` is a file that was just written.
    """
    try:
        os.utime(now)
        age = now.stat().st_mtime - path.stat().st_mtime
        return read_json(path, dict[str, Any], ""), age
    except FileNotFoundError:  # released just now
        return None, _SILENT
    except (OSError, UserError):
        return None, age


def _is_alive(holder: Mapping[str, Any] | None, age: float) -> bool:
    here = this_process()
    if holder is not None and is_earlier_start(holder):
        return False
    if holder is None or holder.get("place") != here["place"]:
        return age < _SILENT
    started = start_time(holder.get("pid"))
    return started is not None and started == holder.get("started")


def _take_away(path: Path, stale: Mapping[str, Any] | None) -> None:
    """Remove a stale lock, but not one that another process has put in its place."""
    away = path.with_name(f"{path.name}.{os.getpid()}@{host()}.stale")
    try:
        os.rename(path, away)
    except FileNotFoundError:
        return
    if _holder(away, away)[0] != stale:
        with suppress(OSError):
            os.link(away, path)
    away.unlink(missing_ok=True)


def _renew(path: Path, stop: threading.Event) -> None:
    while not stop.wait(_RENEWED):
        with suppress(OSError):
            os.utime(path)


def _release(path: Path, text: str, stop: threading.Event, made: list[Path]) -> None:
    stop.set()
    with suppress(OSError):
        if json.loads(text)["pid"] == os.getpid() and path.read_text(encoding="utf-8") == text:
            path.unlink()
            for folder in made:
                folder.rmdir()  # fails, as it should, if something was written


def _explain_held(
    path: Path, subject: str | Path, holder: Mapping[str, Any] | None, advice: str
) -> str:
    if holder is None or holder.get("place") != this_process()["place"]:
        advice += f". If it has ended, wait {_SILENT / 60:.0f} minutes, or remove {path}"
    if holder is None:
        return f"{subject}: another process is writing to it; {advice}"
    place, since = holder.get("place"), holder.get("since")
    host_name = place[0] if isinstance(place, list) and place else "another host"
    when = "an unknown time"
    if isinstance(since, int | float):
        when = f"{datetime.fromtimestamp(since):%Y-%m-%d %H:%M:%S}"
    return (
        f"{subject}: another process is writing to it (process {holder.get('pid')} on {host_name} "
        f"since {when}: {holder.get('command')}); {advice}"
    )


def lock_of(path: Path) -> Path:
    """Return the lock file of a single file or folder: hidden, next to it."""
    return path.with_name(f".{path.name}.lock")
