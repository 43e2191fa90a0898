"""Held-out text that is in the training text is found."""

from __future__ import annotations

from pathlib import Path

from ds_seq.data.overlap import Overlap, find_overlap
from ds_seq.text.lines import PairPath


def write(folder: Path, name: str, pairs: list[tuple[str, str]]) -> PairPath:
    paths = PairPath(folder / f"{name}.a", folder / f"{name}.b")
    for path, side in zip(paths, zip(*pairs, strict=True), strict=True):
        path.write_text("".join(f"{line}\n" for line in side), encoding="utf-8")
    return paths


def test_pairs_and_sources_are_counted(tmp_path: Path) -> None:
    train = write(tmp_path, "train", [("a", "1"), ("b", "2"), ("b", "3"), ("d", "4")])
    valid = write(tmp_path, "valid", [("a", "1"), ("a", "1"), ("b", "9"), ("x", "4"), ("d", "1")])
    assert find_overlap(train, valid) == Overlap(total=5, pairs=2, sources=2)
    assert find_overlap(valid, write(tmp_path, "other", [("y", "1")])) == Overlap(1, 0, 0)
