"""Formats of trained models: a reader each; the first that detects its own opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ds_seq.runs.card import StoredRun
from ds_seq.runs.formats.ds_seq import ExportedFile, RunFolder


class Format(Protocol):
    """Reads trained models of one format."""

    def detects(self, path: Path) -> bool:
        """Whether the file or folder looks like one of this format; ``path`` may be missing."""

    def open(self, path: Path, checkpoint: str) -> StoredRun:
        """Read all but the tensors; see `ds_seq.runs.open.open_run`.

        Raises:
            UserError: something is missing or damaged, or there is no such checkpoint.
        """


FORMATS: tuple[Format, ...] = (ExportedFile(), RunFolder())
