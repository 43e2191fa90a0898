"""Text of one side, as `fairseq-preprocess --only-source` writes it."""

from __future__ import annotations

from pathlib import Path

from ds_seq.data.fairseq_write import indexed_writer
from ds_seq.data.source import TokenBlock

WORDS = 30  # symbols of the dictionary besides fairseq's four
LINES = [[5, 6, 7, 2], [2], [8, 9, 2], [10, 11, 12, 13, 14, 2], [2], [15, 2]]


def write_one_side(folder: Path) -> None:
    """Write `LINES` as training and validation text, and the dictionary."""
    for split in ("train", "valid"):
        with indexed_writer(folder / split, WORDS + 4) as writer:
            writer.add(TokenBlock.of(LINES))
    (folder / "dict.txt").write_text("".join(f"w{n} {WORDS - n}\n" for n in range(WORDS)))
