"""Write the shares of a checkpoint, at once or in a thread while training goes on.

The threads call no collective, which could mix with those of the training: slices travel between
them through an `Exchange`. A rank that has written its files leaves a note next to them; the first
rank waits for the notes of all and then completes the checkpoint. So it is complete as soon as the
last file is, whatever the training does meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from typing_extensions import TypedDict

from ds_seq import distributed, files
from ds_seq.distributed.exchange import Exchange
from ds_seq.errors import UserError
from ds_seq.records import Count, FileName, read_json, record
from ds_seq.training.snapshot import Snapshot
from ds_seq.weights.source import save_tensors

_POLL, _LAST_WAIT = 0.02, 60.0  # seconds between looks for notes; for those of ranks that may end


class Share(NamedTuple):
    """What a rank has written of a checkpoint."""

    absent: list[str]
    """See `Snapshot`."""
    files: dict[str, tuple[int, str]]
    """Size and SHA-256 of each file."""


@record
class _Note(TypedDict):
    """What a rank says about its share."""

    absent: list[str]
    sizes: dict[FileName, Count]
    sha256: dict[FileName, str]


Complete = Callable[[Sequence[Share]], None]
"""Completes a checkpoint of which all files are there; called on the first rank only."""


def write_share(snapshot: Snapshot, exchange: Exchange, folder: Path) -> Share:
    """Assemble the tensors of this rank, write a file per kind, and force it to the disk.

    All ranks call it, but no collective is called.

    Raises:
        UserError: another rank cannot be reached, or a file cannot be written.
    """
    try:
        snapshot.assemble(exchange)
    except UserError as error:
        raise UserError(f"{folder}: cannot be written: {error}") from error
    written = {}
    for kind, tensors in snapshot.tensors.items():
        if tensors:
            path = folder / f"{kind}.{distributed.rank()}.safetensors"
            with files.writing(path):
                save_tensors(tensors, path)
                files.sync(path)
                written[path.name] = (path.stat().st_size, files.fingerprint(path))
    return Share(snapshot.absent, written)


class BackgroundWrite:
    """The writing of one checkpoint in a thread of this rank.

    Args:
        snapshot: this rank's share. Nobody may change it before the end.
        exchange: the way to the other ranks; nobody else uses it before the end.
        folder: folder of the files, which exists.
        complete: completes the checkpoint; used on the first rank.
        failed: set as soon as this rank has an error.

    Attributes:
        folder: folder of the files.
        error: why the checkpoint cannot be written, as far as this rank knows; None so far.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        exchange: Exchange,
        folder: Path,
        complete: Complete,
        failed: threading.Event,
    ) -> None:
        self._failed = failed
        self.error: str | None = None
        self._crash: Exception | None = None
        self.folder = folder
        self._snapshot, self._exchange, self._complete = snapshot, exchange, complete
        self._has_written, self._is_given_up = threading.Event(), threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def wait_for_share(self) -> str | None:
        """Wait until this rank's files are there; return the error if they are not."""
        self._has_written.wait()
        self._raise_crash()
        return self.error

    def wait(self) -> str | None:
        """Wait until there is nothing left to do on this rank; return the error if there is one.

        Call it on the first rank only when all ranks have written, or after `give_up`.
        """
        self._thread.join()
        self._raise_crash()
        return self.error

    def give_up(self) -> None:
        """Stop waiting for other ranks, one of which has failed."""
        self._is_given_up.set()

    def close(self) -> None:
        """Wait for the end when the other ranks may have ended: for them, a minute at most."""
        self._has_written.wait()
        self._deadline = time.monotonic() + _LAST_WAIT
        self._thread.join()

    def _raise_crash(self) -> None:
        if self._crash is not None:
            raise self._crash

    def _run(self) -> None:
        try:
            share = write_share(self._snapshot, self._exchange, self.folder)
            if distributed.rank() != 0:
                _leave_note(share, self.folder)
                return
            self._has_written.set()
            shares = self._gather(share)
            if shares is not None:
                self._complete(shares)
        except UserError as error:
            self.error = str(error)
        except Exception as error:
            self.error, self._crash = repr(error), error
        finally:
            if self.error is not None:
                self._failed.set()
            self._has_written.set()

    def _gather(self, own: Share) -> list[Share] | None:
        """Return the shares of all ranks in rank order; None if some will not come."""
        notes = [_note_path(self.folder, rank) for rank in range(1, distributed.world_size())]
        while not all(note.is_file() for note in notes):
            if self._is_given_up.wait(_POLL) or time.monotonic() > self._deadline:
                return None
        shares = [own, *map(_read_note, notes)]
        with files.writing(self.folder):
            for note in notes:
                note.unlink()
        return shares


def _note_path(folder: Path, rank: int) -> Path:
    return folder / f"written.{rank}.json"


def _leave_note(share: Share, folder: Path) -> None:
    sizes: Mapping[str, int] = {name: size for name, (size, _) in share.files.items()}
    checksums = {name: checksum for name, (_, checksum) in share.files.items()}
    note = {"absent": share.absent, "sizes": sizes, "sha256": checksums}
    files.write_json(_note_path(folder, distributed.rank()), note)


def _read_note(path: Path) -> Share:
    note: _Note = read_json(path, _Note, "")
    return Share(
        note["absent"], {name: (size, note["sha256"][name]) for name, size in note["sizes"].items()}
    )
