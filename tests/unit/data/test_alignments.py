"""Alignments next to shards: written, read, and refused with other shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ds_seq.data.alignments import (
    AlignmentReader,
    alignment_path,
    are_current,
    has_alignments,
    links_block,
    remove_alignments,
    writing_alignments,
)
from ds_seq.data.shards import ShardReader
from ds_seq.errors import UserError

LINKS = [[(0, 0), (1, 2)], [], [(3, 1)]]


@pytest.fixture
def folder(reader: ShardReader, tmp_path: Path) -> Path:
    with writing_alignments(tmp_path, "train", reader) as writer:
        for start in range(0, len(reader), 3):
            writer.add(links_block(LINKS[: len(reader) - start]))
    return tmp_path


def test_links_are_read_by_pair(reader: ShardReader, folder: Path) -> None:
    found = AlignmentReader(folder, "train", reader)
    assert len(found) == len(reader)
    parts = found.gather(np.array([2, 1, 0, 299]))
    assert [part.tolist() for part in parts] == [[[3, 1]], [], [[0, 0], [1, 2]], [[3, 1]]]
    assert are_current(folder, "train", reader) and has_alignments(folder, "train")
    remove_alignments(folder, "train")
    assert not list(folder.iterdir()) and not are_current(folder, "train", reader)
    with pytest.raises(UserError, match=r"train.align.json: no such file; name the alignments"):
        AlignmentReader(folder, "train", reader)


def test_other_shards_and_changed_files_are_refused(
    reader: ShardReader, folder: Path, tmp_path: Path
) -> None:
    class Other:
        fingerprint = "another"

    with pytest.raises(UserError, match=r"train.align.json: belongs to other shards"):
        AlignmentReader(folder, "train", Other())  # type: ignore[arg-type]
    path = alignment_path(folder, "train").with_name("train.align.bin")
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(UserError, match=r"train.align.bin: is missing, or its content has changed"):
        AlignmentReader(folder, "train", reader)


def test_an_interrupted_step_leaves_nothing(reader: ShardReader, folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writing_alignments(folder, "train", reader) as writer:
        writer.add(links_block(LINKS))
        raise KeyboardInterrupt
    assert not list(folder.iterdir())
