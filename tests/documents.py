"""The pages of the documentation, and the blocks of code that they show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    ROOT / "CONTRIBUTING.md",
    *(ROOT / folder / "README.md" for folder in ("", "launch", "prepare_data", "benchmarks")),
    *sorted((ROOT / "docs").glob("*.md")),
)
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?"
    r"^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        document: path from the root of the repository.
        line: line of the document at which the block starts, from 1.
        language: the word after the fence.
        text: the code.
        not_run: why no test can run it; None: one does. The document says so in a comment in the
            line before, `<!-- not run: REASON -->`, which readers do not see.
    """

    document: str
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def name(self) -> str:
        """The block in the name of a test."""
        return f"{self.document}:{self.line}"


def blocks(*languages: str) -> Iterator[Block]:
    """Yield the blocks of all documents, or only those in some languages."""
    for path in DOCUMENTS:
        content = path.read_text(encoding="utf-8")
        for found in _BLOCK.finditer(content):
            if not languages or found["language"] in languages:
                line = content.count("\n", 0, found.start("language")) + 1
                document = str(path.relative_to(ROOT))
                yield Block(document, line, found["language"], found["text"], found["reason"])


class _SettingsLoader(yaml.SafeLoader):
    """Reads the settings of MkDocs, without the functions of Python that they name."""


_SettingsLoader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def site_pages() -> list[str]:
    """Paths of the pages of the site, from the root of the repository, in their order."""
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _SettingsLoader)
    return list(_pages(settings["nav"]))


def _pages(nav: list[dict[str, Any]]) -> Iterator[str]:
    for entry in nav:
        (value,) = entry.values()
        yield from _pages(value) if isinstance(value, list) else [value]
