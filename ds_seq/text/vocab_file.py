"""The file `vocab.model`, which contains the bytes of a tokenizer of any kind."""

from __future__ import annotations

from pathlib import Path

from ds_seq import files
from ds_seq.errors import UserError
from ds_seq.names import VOCAB_FILE
from ds_seq.records import read_limited
from ds_seq.text.tokenizer import Tokenizer

__all__ = ["VOCAB_FILE", "read_vocab_file", "save_tokenizer"]

_MOST_BYTES = 1 << 28


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
