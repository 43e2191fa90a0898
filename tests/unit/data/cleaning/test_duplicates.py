"""Pairs that repeat others, by every key, against a simple count in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ds_seq.data.cleaning import duplicates
from ds_seq.data.cleaning.block import hashes, normalized_key
from ds_seq.data.cleaning.duplicates import RowSet, entries, find_repeated
from ds_seq.names import DuplicateKey


def _expected(keys: list[int], scores: list[float], most: int) -> set[int]:
    """Rows that are not among the first `most` of their key, by score and then by row."""
    dropped = set()
    for key in set(keys):
        rows = [row for row, other in enumerate(keys) if other == key]
        dropped |= set(sorted(rows, key=lambda row: (-scores[row], row))[most:])
    return dropped


@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("scored", [False, True])
def test_the_best_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_files: bool, most: int, scored: bool
) -> None:
    draw = np.random.default_rng(7)
    if in_files:
        monkeypatch.setattr(duplicates, "ROWS_PER_FILE", 100)
        monkeypatch.setattr(duplicates, "_ROWS_AT_A_TIME", 170)
    values = draw.integers(2**64, size=150, dtype=np.uint64)
    chosen = draw.integers(len(values), size=1000)
    scores = draw.integers(4, size=1000).astype(float) if scored else np.zeros(1000)
    parts = [
        entries(first, values[chosen[first : first + 90]], scores[first : first + 90])
        for first in range(0, 1000, 90)
    ]
    folder = tmp_path / "hashes"
    found = np.concatenate(list(find_repeated(parts, 1000, most, folder))).tolist()
    assert len(found) == len(set(found))
    assert set(found) == _expected(chosen.tolist(), scores.tolist(), most)
    assert not folder.exists()


def test_nothing_repeats_in_nothing(tmp_path: Path) -> None:
    assert list(find_repeated([], 0, 1, tmp_path)) == []


def test_a_set_of_rows() -> None:
    rows = RowSet(100)
    rows.add(np.array([3, 4, 4, 63, 99], np.uint64))
    rows.add(np.array([64], np.uint64))
    for first, last in ((0, 100), (3, 5), (5, 63), (60, 70), (99, 100), (50, 50)):
        mask = rows.between(first, last)
        assert np.flatnonzero(mask).tolist() == [
            row - first for row in (3, 4, 63, 64, 99) if first <= row < last
        ]


@pytest.mark.parametrize(
    ("key", "equal"),
    [
        ("pair", [(0, 1)]),
        ("source", [(0, 1), (0, 2)]),
        ("target", [(0, 1), (0, 3)]),
        ("normalized_pair", [(0, 1), (0, 4)]),
        ("normalized_source", [(0, 1), (0, 2), (0, 4), (0, 5)]),
        ("normalized_target", [(0, 1), (0, 3), (0, 4)]),
    ],
)
def test_what_makes_pairs_equal(key: DuplicateKey, equal: list[tuple[int, int]]) -> None:
    pairs = [
        ("Go 12 times!", "Geh 12-mal!"),
        ("Go 12 times!", "Geh 12-mal!"),
        ("Go 12 times!", "Anders"),
        ("Other", "Geh 12-mal!"),
        ("go: 99 TIMES", "GEH 31 mal"),
        ("“Go” 12 times", "Wieder anders"),
    ]
    found = np.frombuffer(hashes(*map(list, zip(*pairs, strict=True)), key), np.uint64)
    same = {(0, other) for other in range(1, len(pairs)) if found[other] == found[0]}
    assert same == set(equal)


def test_text_without_letters_is_its_own_key() -> None:
    assert normalized_key("***") == "***" != normalized_key("---")
