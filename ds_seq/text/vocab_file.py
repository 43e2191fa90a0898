"""The files with the bytes of tokenizers of any kind.

One tokenizer of both sides is `vocab.model`; two are `vocab.source.model` and `vocab.target.model`.
"""

from __future__ import annotations

from pathlib import Path

from ds_seq import files
from ds_seq.errors import UserError
from ds_seq.names import VOCAB_FILE, VOCAB_FILES
from ds_seq.records import read_limited
from ds_seq.text.tokenizer import Tokenizer, Tokenizers

__all__ = [
    "VOCAB_FILE",
    "VOCAB_FILES",
    "read_vocab_file",
    "save_tokenizer",
    "save_tokenizers",
    "vocab_paths",
]

_MOST_BYTES = 1 << 28


def vocab_paths(folder: str | Path, joint: bool) -> tuple[Path, ...]:
    """Return the files of a vocabulary in a folder: one if it is joint, else source and target."""
    return tuple(Path(folder) / name for name in ((VOCAB_FILE,) if joint else VOCAB_FILES))


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


def save_tokenizers(tokenizers: Tokenizers, folder: str | Path, joint: bool) -> None:
    """Write the files that `vocab_paths` names; see `save_tokenizer`."""
    sides = [tokenizers.target] if joint else list(tokenizers)
    for tokenizer, path in zip(sides, vocab_paths(folder, joint), strict=True):
        save_tokenizer(tokenizer, path)
