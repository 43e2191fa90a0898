"""Links of words: how they are read, and which tokens they link."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ds_seq.errors import UserError
from ds_seq.text.alignments import parse_links, read_links, spread_links


def test_lines_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0-0 1-2\r\n\n 3-1\t0-0\n")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"7-12"))
    found = list(read_links([tmp_path / "a", tmp_path / "b.gz"]))
    assert found == [[(0, 0), (1, 2)], [], [(3, 1), (0, 0)], [(7, 12)]]


@pytest.mark.parametrize("line", ["0", "0-", "-1-2", "0-0 1?2", "0--1", "a-b", "1-9999999999"])
def test_what_is_no_link_is_named(line: str) -> None:
    with pytest.raises(UserError, match=r"^x: line 7: .* is no link of a source and a target word"):
        parse_links(line, Path("x"), 7)


def test_all_tokens_of_linked_words_are_linked() -> None:
    source, target = [0, 0, 1, None], [0, 1, 1]
    assert spread_links([(1, 0), (0, 1), (0, 1)], source, target) == [
        (0, 1),
        (0, 2),
        (1, 1),
        (1, 2),
        (2, 0),
    ]
    assert spread_links([], source, target) == []
    assert spread_links([(2, 0)], source, target) is None
    assert spread_links([(0, 2)], source, target) is None
