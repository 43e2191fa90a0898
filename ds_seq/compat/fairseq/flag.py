"""A flag of `fairseq-train`: how its value is read, and what becomes of it."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from ds_seq.errors import UserError

Kind = Literal["text", "int", "float", "switch", "off", "list", "json", "optional"]
"""How a value is read. `switch` and `off` take none, `optional` may stand without one, and `list`
holds numbers with commas between them."""
Fate = Literal["translated", "idle", "refused"]


class Flag(NamedTuple):
    """One row of the table.

    Attributes:
        names: the spellings, the first long one of which names the value in a checkpoint.
        kind: how the value is read.
        default: fairseq's default.
        fate: whether it becomes an option of ds_seq, has no effect in it, or is refused.
        ours: options that it becomes, separated by commas; empty if there are none.
        note: what a user should know: why it has no effect or is refused, or what differs.
        copied: whether its value is that of the only option in `ours`.
    """

    names: tuple[str, ...]
    kind: Kind
    default: Any
    fate: Fate
    ours: str = ""
    note: str = ""
    copied: bool = False

    @property
    def dest(self) -> str:
        """Name of the value among the arguments of fairseq."""
        long = next(name for name in self.names if name.startswith("--"))
        return long[2:].replace("-", "_")

    @property
    def options(self) -> list[str]:
        """The options of ds_seq."""
        return [option.strip() for option in self.ours.split(",") if option.strip()]


def copied(names: str, kind: Kind, default: Any, ours: str, note: str = "") -> Flag:
    """Return the row of a flag whose value is that of one option."""
    return Flag(tuple(names.split()), kind, default, "translated", ours, note, copied=True)


def becomes(names: str, kind: Kind, default: Any, ours: str, note: str = "") -> Flag:
    """Return the row of a flag that becomes options together with others."""
    return Flag(tuple(names.split()), kind, default, "translated", ours, note)


def idle(names: str, kind: Kind, default: Any, note: str) -> Flag:
    """Return the row of a flag without effect."""
    return Flag(tuple(names.split()), kind, default, "idle", note=note)


def refused(names: str, kind: Kind, default: Any, note: str) -> Flag:
    """Return the row of a flag that is refused unless it changes nothing."""
    return Flag(tuple(names.split()), kind, default, "refused", note=note)


def changes(flag: Flag, value: Any) -> bool:
    """Return whether a value switches on what the flag stands for."""
    return value != flag.default and value not in (None, False, 0, "", "0", "none")


def read_value(flag: Flag, name: str, text: str) -> Any:
    """Return the value that a word of the command line stands for.

    Args:
        flag: row of the flag.
        name: spelling of the flag, for messages.
        text: the word.

    Raises:
        UserError: the word is not of the flag's kind.
    """
    if flag.kind in ("text", "optional"):
        return text
    try:
        return _READERS[flag.kind](text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        wanted = {"int": "a whole number", "float": "a number", "json": "a JSON object"}
        should = wanted.get(flag.kind, "numbers with commas between them")
        raise UserError(f"{name} {text}: should be {should}; correct the command") from None


def numbers(value: Any) -> list[float]:
    """Return numbers as fairseq reads them: `1,2`, `[1, 2]` or `(1, 2)`; of a checkpoint, a list.

    Raises:
        ValueError: these are no numbers.
    """
    if isinstance(value, str):
        value = ast.literal_eval(value if value.strip()[:1] in ("[", "(") else f"[{value}]")
    values = list(value) if isinstance(value, list | tuple) else [value]
    if any(isinstance(each, bool) or not isinstance(each, int | float) for each in values):
        raise ValueError("not numbers")
    return values


def _json(text: str) -> dict[str, Any]:
    value = json.loads(text or "{}")
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


_READERS: Mapping[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "list": numbers,
    "json": _json,
}
