"""The file `vocab.model`, which contains the bytes of a tokenizer of any kind."""

from __future__ import annotations

from pathlib import Path

from ds_seq import files
from ds_seq.errors import UserError
from ds_seq.records import read_limited
from ds_seq.text.tokenizer import Tokenizer

_MOST_BYTES = 1 << 28
VOCAB_FILE = "vocab.model"
"""File name in the folders of shards, runs and exports."""


def read_vocab_file(path: str | Path) -> bytes:
    """Read the bytes of a tokenizer.

    Raises:
        UserError: the file does not exist or cannot be read.
    """
    try:
        return read_limited(Path(path), _MOST_BYTES)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such vocabulary; make it with `ds-seq prepare` or "
            "prepare_data/train_vocab.py"
        ) from None


def save_tokenizer(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write the bytes of a tokenizer; an existing file is replaced atomically."""
    files.write_bytes(path, tokenizer.to_bytes())
