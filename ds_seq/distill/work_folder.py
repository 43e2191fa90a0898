"""The state of an unfinished labeling job: its settings and its results so far."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ds_seq import files
from ds_seq.data.shards import manifest_path
from ds_seq.distill.journal import Journals, repair
from ds_seq.errors import UserError
from ds_seq.text.vocab_file import VOCAB_FILE, VOCAB_FILES

Settings = Mapping[str, str | int | float]


class WorkFolder:
    """A folder inside the new data folder that exists until the data are complete.

    Args:
        out: the new data folder.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._folder = out / "pseudo-labels.work"
        self._settings = self._folder / "settings.json"
        self._lock: files.Lock | None = None

    def check_new(self, data: Path) -> None:
        """Refuse a new data folder that would overwrite other data.

        Raises:
            UserError: it is the old folder `data`, lies in it, or holds data that are not an
                unfinished labeling.
        """
        out, old = self._out.resolve(), data.resolve()
        if out == old or old in out.parents:
            raise UserError(f"--out {self._out}: lies in the data folder --data; give another one")
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {self._out}: is a file; give the name of a new folder")
        has_vocab = any((out / name).exists() for name in (VOCAB_FILE, *VOCAB_FILES))
        holds_data = has_vocab or any(out.glob("*.manifest.json"))
        if holds_data and not self._folder.exists():
            raise UserError(f"--out {self._out}: holds data already; remove it or give another one")

    def begin(self, settings: Settings, notes: Settings) -> NDArray[np.int64]:
        """Begin a labeling, or resume an unfinished one, and lock it.

        Args:
            settings: settings that must be the same to resume.
            notes: information written next to the settings for human readers.

        Returns:
            Indices of the finished sentences.

        Raises:
            UserError: it was begun with other settings, or another process is doing it.
        """
        with files.writing(self._folder):
            if self._lock is None:
                advice = "stop that process first, or give another --out"
                self._lock = files.Lock(self._folder / files.LOCK_FILE, self._out, advice)
            files.remove_leftovers(self._folder)
            if self._settings.exists():
                self._compare(settings)
            else:
                files.write_json(self._settings, {"settings": settings, "notes": notes})
            for journal in self._paths():
                repair(journal)
            return self.journals().sentences()

    def _compare(self, new: Settings) -> None:
        changed = [
            f"{name} {_short(old)}, now {_short(new.get(name))}"
            for name, old in files.changed_settings(self._settings, new, "settings").items()
        ]
        if changed:
            raise UserError(
                f"--out {self._out}: was begun with {'; '.join(changed)}; give what "
                f"{self._settings} says to resume, or another --out"
            )

    def journal(self, rank: int) -> Path:
        """Return the file to which a rank writes."""
        return self._folder / f"journal.{rank:05d}"

    def journals(self) -> Journals:
        """Open the journals of all ranks, from this run and earlier ones."""
        return Journals(self._paths())

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("journal.*"))

    def remove(self) -> None:
        """Delete the folder."""
        files.remove_folder(self._folder)


def data_fingerprint(data: Path, split: str) -> str:
    """Return the SHA-256 of a split's manifest, which contains the hashes of its files."""
    return files.fingerprint(manifest_path(data, split))


def _short(value: object) -> str:
    """Format a value for a message, shortening checksums."""
    text = "unknown" if value is None else str(value)
    return f"{text[:12]}..." if len(text) == hashlib.sha256().digest_size * 2 else text
