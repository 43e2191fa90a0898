"""Small files by which the processes of a run say that they are alive, and how they have ended.

`ds-seq supervise` names their folder in an environment variable. Every process that runs a command
writes there when it begins, every second or few while a watchdog runs, and when it ends. The files
are renamed into place, but not forced to the disk: only their newest state has a meaning.

    begin.<host>.<pid>.json   the process runs a command
    beat.<host>.<pid>.json    its rank, update, phase, and a number that grows
    end.<host>.<pid>.json     its exit code
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds_seq.errors import (
    EXIT_INTERRUPTED,
    EXIT_RANK_LOST,
    RankLost,
    UserError,
)
from ds_seq.files.process import host, start_time

FOLDER = "DS_SEQ_HEARTBEATS"
"""Environment variable: the folder of the files; without it none is written."""
_EXIT_BUG = 1


def is_wanted() -> bool:
    """Return whether somebody reads the files of this process."""
    return bool(os.environ.get(FOLDER))


def write(kind: str, values: Mapping[str, Any]) -> None:
    """Write a file of this process if somebody reads it; errors of the disk are ignored.

    Args:
        kind: `begin`, `beat` or `end`.
        values: what it says, serializable as JSON.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    pid = os.getpid()
    record = {"host": host(), "pid": pid, "started": start_time(pid), "time": time.time(), **values}
    path = Path(folder) / f"{kind}.{host()}.{pid}.json"
    with suppress(OSError):
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps(record), encoding="utf-8")
        os.replace(temporary, path)


def recorded(function: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Return `function(argv)`, and write how the process begins and ends."""
    write("begin", {})
    code = _EXIT_BUG
    try:
        code = function(argv)
    except UserError as error:
        code = error.exit_code
        raise
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else _EXIT_BUG
        raise
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
        raise
    except RankLost:
        code = EXIT_RANK_LOST
        raise
    finally:
        write("end", {"code": code})
    return code


@dataclass
class Process:
    """What the files say of a process.

    Attributes:
        host: name of its host.
        pid: its number there.
        started: when it was started, by the clock of that host's kernel.
        beat: its newest heartbeat; empty before the first.
        changed: when that was first seen, by `time.monotonic` of the reader.
        code: its exit code; None if it has not written one.
        ended: when it wrote that.
    """

    host: str
    pid: int
    started: str | None
    beat: dict[str, Any] = field(default_factory=dict)
    changed: float = field(default_factory=time.monotonic)
    code: int | None = None
    ended: float = 0.0

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this host."""
        return self.host == host()

    @property
    def is_running(self) -> bool:
        """Whether it runs on this host; a stopped process does."""
        return self.is_here and start_time(self.pid) == self.started is not None

    @property
    def was_killed(self) -> bool:
        """Whether it has ended, on this host, without writing how."""
        return self.code is None and self.is_here and not self.is_running

    @property
    def is_watched(self) -> bool:
        """Whether it should send heartbeats: it has begun to, and has not said that it leaves."""
        return bool(self.beat) and not self.beat.get("left") and self.code is None


class Heartbeats:
    """Reads the files of a folder again and again.

    Attributes:
        processes: all processes that have written, by host and number.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.processes: dict[str, Process] = {}

    def read(self) -> None:
        """Read what is new."""
        for path in sorted(self._folder.glob("*.json")):
            kind, _, name = path.stem.partition(".")
            try:
                values = json.loads(path.read_text(encoding="utf-8"))
                process = self.processes.setdefault(
                    name, Process(str(values["host"]), int(values["pid"]), values["started"])
                )
                if kind == "end":
                    process.code, process.ended = int(values["code"]), float(values["time"])
                elif kind == "beat" and values != process.beat:
                    process.beat, process.changed = dict(values), time.monotonic()
            except (OSError, ValueError, KeyError, TypeError):
                continue  # it is being replaced, or somebody else's

    @property
    def update(self) -> int:
        """The newest update of any process."""
        return max((int(p.beat.get("update", 0)) for p in self.processes.values()), default=0)
