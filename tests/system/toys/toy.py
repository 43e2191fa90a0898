"""A part that a developer adds to a copy of ds_seq: its new files and its changes of others.

A change names the file and a text that stands in it exactly once, so a toy that the package has
moved away from is reported, not left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

FUTURE = "from __future__ import annotations\n"


class Change(NamedTuple):
    """One text of a file, and what stands in its place afterwards."""

    file: str
    old: str
    new: str


class Toy(NamedTuple):
    """A part that the package does not have."""

    part: str
    """Its kind, as ARCHITECTURE.md calls it."""
    settings: tuple[str, ...]
    """Overrides of an experiment that uses it."""
    modules: dict[str, Path]
    """New files: where they go, and what they are copied from."""
    changes: tuple[Change, ...]
    fields: dict[str, Any] | None = None
    """Fields of `model` that select it, if it is an axis of the model."""

    @property
    def files(self) -> list[str]:
        """All files below `ds_seq/` that are new or changed; a new one is called `NAME.py`."""
        new = [str(Path(file).with_name("NAME.py")) for file in self.modules]
        return sorted({*new, *(change.file for change in self.changes)})


def put(file: str, after: str, text: str) -> Change:
    """`text` behind what is there."""
    return Change(file, after, after + text)


def before(file: str, mark: str, text: str) -> Change:
    """`text` in front of what is there."""
    return Change(file, mark, text + mark)


def imports(file: str, line: str) -> Change:
    """One more import."""
    return put(file, FUTURE, f"\n{line}\n")


def add(toy: Toy, package: Path) -> None:
    """Make the changes of a toy in a copy of `ds_seq`, all or none.

    Raises:
        AssertionError: a text is not in its file, or several times.
    """
    texts = {}
    for file, source in toy.modules.items():
        assert not (package / file).exists(), f"{file} exists"
        texts[file] = source.read_text(encoding="utf-8")
    for file, old, new in toy.changes:
        text = texts.get(file) or (package / file).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file}: {text.count(old)} times {old!r}"
        texts[file] = text.replace(old, new)
    for file, text in texts.items():
        (package / file).write_text(text, encoding="utf-8")


def result_file(toy: Toy, folder: Path) -> Path:
    """Where it is written how a toy fared."""
    return folder / f"{toy.part.replace(' ', '_')}.json"
