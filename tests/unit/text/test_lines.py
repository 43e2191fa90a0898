"""Raw text in and out, and what is said of bad text."""

from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path

import pytest

from ds_seq.errors import UserError
from ds_seq.text.lines import (
    check_writable,
    read_buffers,
    read_lines,
    read_parallel,
    write_lines,
)


def test_round_trip(tmp_path: Path) -> None:
    lines = ["a b", "", "ä\u2028ö \x85", "", "z"]
    write_lines(tmp_path / "text", lines)
    assert read_lines(tmp_path / "text") == lines
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize("content", [b"a\nb", b"a\nb\n", b"a\r\nb\r\n", b"\xef\xbb\xbfa\nb\n"])
def test_line_ends(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(content)
    assert read_lines(tmp_path / "text") == ["a", "b"]


def test_no_lines(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"")
    assert read_lines(tmp_path / "text") == []
    (tmp_path / "text").write_bytes(b"\n\n")
    assert read_lines(tmp_path / "text") == ["", ""]


def test_compressed_text(tmp_path: Path) -> None:
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"a\nb\n"))
    assert read_lines(tmp_path / "text.gz") == ["a", "b"]


def test_standard_input_and_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n\nb\n")))
    assert read_lines("-") == ["a", "", "b"]
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out))
    write_lines("-", ["ä", ""])
    assert out.getvalue() == "ä\n\n".encode()


def test_standard_input_comes_in_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a\r\n\nb\u2028c\nd\ne".encode()
    for size, expected in ((2, [["a", ""], ["b\u2028c", "d"], ["e"]]), (5, None), (9, None)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        assert list(read_buffers(size)) == (expected or [["a", "", "b\u2028c", "d", "e"]])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\nc\n\xff\n")))
    buffers = read_buffers(2)
    assert next(buffers) == ["a", "b"]
    with pytest.raises(UserError, match="standard input: line 4: invalid UTF-8"):
        next(buffers)


def test_invalid_utf8_is_named_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"good\nalso good\nb\xe4d\n")
    with pytest.raises(UserError, match=r"text.*line 3.*UTF-8"):
        read_lines(tmp_path / "text")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such file"):
        read_lines(tmp_path / "nowhere")


def test_unequal_sides_are_reported_with_both_counts(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n2\n3\n")
    (tmp_path / "b").write_text("1\n2\n")
    with pytest.raises(UserError, match=r"a has 3 lines but .*b has 2"):
        read_parallel(tmp_path / "a", tmp_path / "b")


def test_bad_output_paths_are_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        check_writable(tmp_path / "missing" / "out")
    check_writable(tmp_path / "out")
    check_writable("-")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "out", ["old"])
    with pytest.raises(UnicodeEncodeError):
        write_lines(tmp_path / "out", ["\ud800"])
    assert read_lines(tmp_path / "out") == ["old"]
    assert len(list(tmp_path.iterdir())) == 1
