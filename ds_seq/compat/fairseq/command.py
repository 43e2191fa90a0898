"""Read a `fairseq-train` command, without fairseq."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePath
from typing import Any

from ds_seq.compat.fairseq.architectures import ARCHITECTURES, LAYERS
from ds_seq.compat.fairseq.flag import Flag, read_value
from ds_seq.compat.fairseq.model_flags import MODEL_FLAGS
from ds_seq.compat.fairseq.noise_flags import NOISE_FLAGS
from ds_seq.compat.fairseq.task_flags import (
    CRITERION_FLAGS,
    DATA_FLAGS,
    ELSEWHERE,
    OPTIMIZER_FLAGS,
)
from ds_seq.compat.fairseq.text_flags import TEXT_FLAGS
from ds_seq.compat.fairseq.training_flags import TRAINING_FLAGS
from ds_seq.errors import UserError
from ds_seq.plugins import nearest

FLAGS: tuple[Flag, ...] = (
    *MODEL_FLAGS, *TEXT_FLAGS, *NOISE_FLAGS, *DATA_FLAGS, *CRITERION_FLAGS, *OPTIMIZER_FLAGS,
    *TRAINING_FLAGS,
)  # fmt: skip
"""All flags, one row each."""

BY_NAME: Mapping[str, Flag] = {name: flag for flag in FLAGS for name in flag.names}
BY_DEST: Mapping[str, Flag] = {flag.dest: flag for flag in FLAGS}

_PROGRAM = re.compile(r"(fairseq-train|train\.py|fairseq_cli\.train)$")
_HYDRA = re.compile(r"(fairseq-hydra-train|hydra_train\.py)$")
_DEVICES = re.compile(r"CUDA_VISIBLE_DEVICES=([\d,]+)$")


@dataclass(frozen=True)
class Given:
    """The arguments of a training with fairseq: of a command, or as a checkpoint stores them.

    Attributes:
        values: what was given, by the name of the flag with underscores.
        data: the folders with the data, with colons between them; empty if unknown.
        num_devices: number of GPUs that the command shows to fairseq; None if it says nothing.
    """

    values: Mapping[str, Any]
    data: str = ""
    num_devices: int | None = None
    _architecture: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any], data: str = "", num_devices: int | None = None) -> Given:
        """Make it of the values, which those of the architecture complete.

        Raises:
            UserError: the architecture is unknown.
        """
        return cls(values, data, num_devices, _architecture(values.get("arch")))

    def __getitem__(self, dest: str) -> Any:
        """Return the value of a flag: as given, of the architecture, or fairseq's default."""
        if self.values.get(dest) is not None:
            return self.values[dest]
        default = BY_DEST[dest].default
        return self._architecture.get(dest, default)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What was given and what the architecture implies, without defaults."""
        return {**self._architecture, **self.values}

    def typed(self, dest: str) -> bool:
        """Return whether the flag was given."""
        return dest in self.values

    def name(self, dest: str) -> str:
        """Return the flag as it is spelled."""
        return BY_DEST[dest].names[0]


def read_command(words: Sequence[str]) -> Given:
    """Read the words of a command.

    Args:
        words: the arguments of `fairseq-train`, or the whole command with what starts it.

    Raises:
        UserError: a flag is unknown, has no value or a wrong one; the mistakes are named together.
    """
    devices = next((m[1] for word in words if (m := _DEVICES.match(word))), None)
    words = _arguments(words)
    _check_task(words)
    values: dict[str, Any] = {}
    rest: list[str] = []
    mistakes: list[str] = []
    for item in _items(words, mistakes):
        if isinstance(item, str):
            rest.append(item)
            continue
        flag, name, text = item
        try:
            values[flag.dest] = (flag.kind != "off") if text is None else _value(flag, name, text)
        except UserError as error:
            mistakes.append(str(error))
    if len(rest) > 1:
        mistakes.append(f"{rest[1]}: the command has one folder of data, {rest[0]}; remove it")
    if mistakes:
        raise UserError("\n".join(f"from-fairseq: {mistake}" for mistake in mistakes))
    count = None if devices is None else len([d for d in devices.split(",") if d])
    return Given.of(values, rest[0] if rest else "", count)


def _check_task(words: Sequence[str]) -> None:
    """Refuse a task that is written in another way here, before its flags are unknown."""
    for name, value in pairwise([part for word in words for part in word.split("=", 1)]):
        if name == "--task" and value in ELSEWHERE:
            raise UserError(f"from-fairseq: --task {value}: not supported; {ELSEWHERE[value]}")


def _value(flag: Flag, name: str, text: str) -> Any:
    """Return the value of a flag; the layers of some architectures are a list, kept as a text."""
    if flag.dest in LAYERS and text.lstrip().startswith("["):
        return text
    return read_value(flag, name, text)


def _arguments(words: Sequence[str]) -> list[str]:
    """Return what follows the name of the program, if that is there."""
    for number, word in enumerate(words):
        name = PurePath(word).name
        if _HYDRA.search(name):
            raise UserError(
                f"from-fairseq: {word} reads settings of Hydra; give the command of fairseq-train "
                "with the same flags"
            )
        if _PROGRAM.search(name):
            return list(words[number + 1 :])
        if word.startswith("-") and word in BY_NAME:
            break
    return [word for word in words if not _DEVICES.match(word)]


def _items(
    words: Sequence[str], mistakes: list[str]
) -> Iterator[str | tuple[Flag, str, str | None]]:
    """Yield words without a flag, and (flag, its spelling, its value)."""
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not _is_flag(word):
            yield word
            continue
        name, has_value, value = word.partition("=")
        flag = BY_NAME.get(name)
        if flag is None:
            mistakes.append(
                f"no flag {name} of fairseq-train is known{nearest(name, BY_NAME)}; correct it, or "
                "leave it out if it belongs to code of your own"
            )
            while waiting and not _is_flag(waiting[0]):  # its values
                waiting.pop(0)
        elif flag.kind in ("switch", "off"):
            if has_value:
                mistakes.append(f"{name}: takes no value; remove ={value}")
            yield flag, name, None
        elif has_value:
            yield flag, name, value
        elif waiting and not _is_flag(waiting[0]):
            yield flag, name, waiting.pop(0)
        elif flag.kind == "optional":
            yield flag, name, ""
        else:
            mistakes.append(f"{name}: needs a value")


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not re.match(r"-[\d.]|-$", word)


def _architecture(name: str | None) -> Mapping[str, Any]:
    if name is None:
        return {}
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"--arch {name}: no such architecture{nearest(name, ARCHITECTURES)}; there are {known}"
        )
    return ARCHITECTURES[name]
