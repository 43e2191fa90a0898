"""Formats of trained models: one reader per format; the first that detects its format is used."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ds_seq.runs.card import StoredRun
from ds_seq.runs.formats.ds_seq import ExportedFile, RunFolder


class Format(Protocol):
    """Reads trained models of one format."""

    def detects(self, path: Path) -> bool:
        """Return whether a file or folder, which may be missing, seems to have this format."""

    def open(self, path: Path, checkpoint: str) -> StoredRun:
        """Open a model without reading its tensors; see `ds_seq.runs.open.open_run`.

        Raises:
            UserError: a file is missing or damaged, or there is no such checkpoint.
        """


FORMATS: tuple[Format, ...] = (ExportedFile(), RunFolder())
