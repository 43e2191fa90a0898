"""What a training was started with: command, place, versions. One line per start of a run."""

from __future__ import annotations

import json
import platform
import shlex
import socket
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import ds_seq
from ds_seq.distributed import World
from ds_seq.environment import source_commit
from ds_seq.names import STARTS_FILE

_PACKAGES = ("torch", "deepspeed", "numpy", "sentencepiece", "sacrebleu")


def record_start(
    folder: Path, world: World, update: int, last_update: int, parameters: int | None = None
) -> dict[str, Any]:
    """Append a line to `starts.jsonl` in the run folder, and return its content.

    Args:
        folder: folder of the run.
        world: the processes of the run.
        update: update at which training starts; 0 unless it resumes.
        last_update: update at which it ends if nothing ends it earlier.
        parameters: number of parameters of the model; None if unknown.
    """
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "update": update,
        "last_update": last_update,
        "parameters": parameters,
        "command": shlex.join(sys.orig_argv),
        "folder": str(Path.cwd()),
        "host": socket.gethostname(),
        "processes": world.size,
        "device": _device(world),
        "threads": torch.get_num_threads(),
        "commit": source_commit(),
        "versions": {
            "ds_seq": ds_seq.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
            "cuda": torch.version.cuda,
        },
    }
    path = folder / STARTS_FILE
    # an argument or a folder may have bytes that are not UTF-8; they become JSON's own escapes
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(json.dumps(start, ensure_ascii=False) + "\n")
    return start


def describe_start(start: dict[str, Any]) -> str:
    """Return a line about a start, for the log."""
    versions = start["versions"]
    commit = f" ({start['commit']})" if start["commit"] else ""
    return (
        f"ds_seq {versions['ds_seq']}{commit}, torch {versions['torch']}, deepspeed "
        f"{versions['deepspeed']}; {start['host']}, {start['device']}, {start['threads']} "
        "thread(s) per process"
    )


def _device(world: World) -> str:
    if world.device.type == "cuda":
        return torch.cuda.get_device_name(world.device)
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
