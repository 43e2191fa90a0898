"""Tensors of a model chosen by name: parts such as `adapters.de`, patterns such as `*.norm.*`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

from ds_seq.names import ADAPTERS, ModelPart

_PARTS: Mapping[ModelPart, re.Pattern[str]] = {
    "encoder": re.compile(r"encoder\."),
    "decoder": re.compile(r"decoder\."),
    "embeddings": re.compile(r"(source|target)_embedding\.|(encoder|decoder)\.positions\."),
    "experts": re.compile(r".*\.experts\."),
    "routers": re.compile(r"(?!.*\.adapters\.).*\.gate\."),  # an adapter may have a gate, too
    "adapters": re.compile(r".*\.adapters\.for_"),
    "lora": re.compile(r".*\.lora\."),
}
_LAYER = re.compile(r"\.\d+\.")
_MOST_LISTED = 20
_ADAPTER = re.compile(r".*\.adapters\.for_([^.]+)\.")


def adapter_of(name: str) -> str | None:
    """Return the id of the adapter that a tensor belongs to; None for any other tensor."""
    found = _ADAPTER.match(name)
    return None if found is None else found[1]


def listed(names: Iterable[str]) -> str:
    """Return a list of tensors for a message, those of layers that differ in number as one entry.

    Args:
        names: names of tensors; layers are numbered in them.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_LAYER.sub(".*.", name), []).append(name)
    entries = [
        repr(own[0]) if len(own) == 1 else f"{pattern!r} ({len(own)})"
        for pattern, own in groups.items()
    ]
    more = len(entries) - _MOST_LISTED
    return ", ".join(entries[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


class Selection:
    """Some tensors of a model.

    Args:
        entries: each is one of `ds_seq.names.MODEL_PARTS`, `adapters.ID`, the name of a module or
            tensor, or a pattern of such a name with `*` and `?`.
    """

    def __init__(self, entries: Collection[str]) -> None:
        self.entries = tuple(entries)

    def has(self, name: str) -> bool:
        """Return whether the selection has the tensor of this name."""
        return any(_selects(entry, name) for entry in self.entries)

    def idle(self, names: Iterable[str]) -> list[str]:
        """Return the entries that select none of these names."""
        names = list(names)
        return [e for e in self.entries if not any(_selects(e, name) for name in names)]


def _selects(entry: str, name: str) -> bool:
    part = _PARTS.get(entry)  # type: ignore[call-overload]
    if part is not None:
        return bool(part.match(name))
    if entry.startswith(ADAPTERS):
        return adapter_of(name) == entry.removeprefix(ADAPTERS)
    return fnmatchcase(name, entry) or fnmatchcase(name, f"{entry}.*")
