"""Files of work that is not finished: one process writes, and what is removed is gone whole."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from ds_seq.errors import UserError


def lock(file: BinaryIO, path: Path, option: str) -> None:
    """Keep other processes out until the file is closed, be it by a kill.

    Args:
        file: open for writing.
        path: its name.
        option: of the command line, which says where the work is kept.

    Raises:
        UserError: another process has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{path}: another process is writing to it; end that one first, or give another "
            f"{option}"
        ) from None
    except OSError:
        pass  # a file system without locks


def remove_folder(folder: Path) -> None:
    """Remove a folder; a kill on the way does not leave a part that looks like the whole."""
    hidden = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    os.replace(folder, hidden)
    shutil.rmtree(hidden)
