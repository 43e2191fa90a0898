"""Refuse an environment in which the variables of launchers contradict each other.

A rank that believes the wrong variable waits for processes that nobody has started, or trains alone
while others do the same; both cost more than a refusal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ds_seq.errors import UserError

_ANCESTORS = 6  # deepspeed, deepspeed.launcher.launch, and a shell or two around them


class Started(NamedTuple):
    """What one launcher says in its variables.

    Attributes:
        launcher: name of the launcher.
        rank_name: variable of the rank.
        size_name: variable of the number of processes.
        rank: rank of this process.
        size: number of processes.
        fix: option of the launcher that sets the number of processes.
    """

    launcher: str
    rank_name: str
    size_name: str
    rank: int
    size: int
    fix: str


def by_hand(env: Mapping[str, str]) -> bool:
    """Return whether neither torchrun nor DeepSpeed has set `RANK` and `WORLD_SIZE`."""
    return "TORCHELASTIC_RUN_ID" not in env and "CROSS_SIZE" not in env


def refuse_half_set(env: Mapping[str, str]) -> None:
    """Refuse some of the variables of torch without the others; no other launcher is there.

    Raises:
        UserError: one of them is missing.
    """
    for missing, present in (("WORLD_SIZE", "RANK"), ("RANK", "WORLD_SIZE")):
        if present in env and missing not in env and (present, env[present]) != ("WORLD_SIZE", "1"):
            raise UserError(
                f"environment: {missing} is not set, although {present}={env[present]} is; set "
                f"both, or unset {present}, or use a launcher (launch/README.md)"
            )


def refuse_no_address(env: Mapping[str, str], size: int) -> None:
    """Refuse several processes that do not know where rank 0 is.

    Raises:
        UserError: `MASTER_ADDR` is missing.
    """
    if size > 1 and not env.get("MASTER_ADDR"):
        raise UserError(
            f"environment: MASTER_ADDR is not set, although WORLD_SIZE={size} is; set it to the "
            "address of the first node on all nodes"
        )


def refuse_other_world(env: Mapping[str, str], rank: int, size: int, started: Started) -> None:
    """Refuse `RANK` and `WORLD_SIZE` that a user has set and that another launcher contradicts.

    One process that a launcher has started may be the shell in which all ranks are started by hand.

    Args:
        env: the environment.
        rank: `RANK`.
        size: `WORLD_SIZE`.
        started: what the other launcher says.

    Raises:
        UserError: they differ.
    """
    if started.size == 1 or not by_hand(env):
        return
    for name, value, other_name, other in (
        ("WORLD_SIZE", size, started.size_name, started.size),
        ("RANK", rank, started.rank_name, started.rank),
    ):
        if value != other:
            raise UserError(
                f"environment: {name}={value}, but {other_name}={other}: {started.launcher} has "
                f"started {started.size} processes; unset RANK and WORLD_SIZE, or set {started.fix}"
            )


def refuse_stray(env: Mapping[str, str], started: Started) -> None:
    """Refuse a lone `RANK` or `WORLD_SIZE` that is not what the launcher says.

    Raises:
        UserError: it differs.
    """
    for name, other_name, value in (
        ("WORLD_SIZE", started.size_name, started.size),
        ("RANK", started.rank_name, started.rank),
    ):
        if name in env and env[name].strip() != str(value):
            raise UserError(
                f"environment: {name}={env[name]}, but {other_name}={value}: {started.launcher} "
                f"has started {started.size} process(es); unset {name}, or set {started.fix}"
            )


def refuse_lost_hostfile(env: Mapping[str, str], size: int) -> None:
    """Refuse a run that DeepSpeed has started on one node because it did not find the hostfile.

    Args:
        env: the environment.
        size: number of processes that DeepSpeed has started.

    Raises:
        UserError: its command names a hostfile that does not exist.
    """
    if env.get("CROSS_SIZE") != "1":
        return
    for words, folder in _ancestors():
        name = _hostfile(words)
        if name is not None and not os.path.isfile(os.path.join(folder, name)):
            raise UserError(
                f"deepspeed: there is no hostfile {name}, so DeepSpeed has started {size} "
                "process(es) on this node only; correct --hostfile, or leave it out"
            )


def _ancestors() -> Iterator[tuple[list[str], str]]:
    """Yield command and working folder of the parent, its parent, and so on; on Linux only."""
    pid = os.getppid()
    for _ in range(_ANCESTORS):
        process = Path("/proc") / str(pid)
        try:
            words = os.fsdecode((process / "cmdline").read_bytes()).split("\0")
            folder = os.readlink(process / "cwd")
            # the name of the program, in parentheses, may have spaces
            fields = (process / "stat").read_text(errors="replace").rsplit(")", 1)[-1].split()
        except OSError:  # another system, or another user's process
            return
        yield words, folder
        pid = int(fields[1])
        if pid <= 1:
            return


def _hostfile(words: list[str]) -> str | None:
    """Return the hostfile that a `deepspeed` command names, if it is one."""
    start = next(
        (at for at, word in enumerate(words[:3]) if Path(word).name in ("deepspeed", "ds")), None
    )
    if start is None:
        return None
    for at in range(start + 1, len(words)):
        word = words[at]
        if word in ("-H", "--hostfile") and at + 1 < len(words):
            return words[at + 1]
        if word.startswith("--hostfile="):
            return word.partition("=")[2]
        if word.endswith(".py"):  # options of the script follow
            return None
    return None
