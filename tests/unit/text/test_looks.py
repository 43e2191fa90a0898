"""Files that are no lines of text are named as what they look like."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path

import pytest

from ds_seq.errors import UserError
from ds_seq.text.lines import open_bytes, read_buffers, read_lines, text_fingerprint

PAIR = b"the man\tder Mann\n"
JSON_LINES = b'{"en": "a", "de": "b"}\n{"en": "c", "de": "d"}\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.en", b"\x28\xb5\x2f\xfd" + b"abc" * 9, "compressed by zstd; give it the suffix .zst"),
        (
            "x.en",
            gzip.compress(b"the man\n", mtime=0),
            "compressed by gzip; give it the suffix .gz",
        ),
        ("x.en", "the män\n".encode("utf-16"), "UTF-16 text; convert it: iconv -f UTF-16 -t"),
        ("x.en", "the man\n".encode("utf-16-le"), "UTF-16 text; convert it: iconv -f UTF-16LE"),
        ("x.en", "the man\n".encode("utf-16-be"), "UTF-16 text; convert it: iconv -f UTF-16BE"),
        ("x.en", "the man\n".encode("utf-32"), "UTF-32 text; convert it: iconv -f UTF-32"),
        ("x.en.gz", gzip.compress("the man\n".encode("utf-16"), mtime=0), "UTF-16 text"),
        ("x.tsv", PAIR, "a table of 2 columns; data.raw takes {tsv: "),
        ("x.tsv.gz", gzip.compress(PAIR, mtime=0), "cut the text out: cut -f 1"),
        ("x.en", PAIR * 5, "a table of 2 columns"),
        ("x.json", b'[\n {"en": "a"},\n {"en": "b"}\n]\n', "JSON; write its sentences to a file"),
        ("x.json", b'[{"en": "a"}]', "JSON; write its sentences to a file"),
        ("x.json", b'{\n  "en": ["a"]\n}\n', "JSON; write its sentences to a file"),
        ("x.csv", b'"the man, he",der Mann\n' * 2, "a table of 2 columns; write its columns"),
        ("x.en", b"the man\rthe woman\r", r"with a carriage return; convert it: tr '\r' '\n' <"),
        ("x.jsonl", JSON_LINES, "the keys en, de; data.raw takes {jsonl: "),
        ("x.jsonl", JSON_LINES, "keys: [en, de]}; elsewhere, take the text out: jq"),
        ("x.xml", b'\xef\xbb\xbf<?xml version="1.0"?>\n<tmx/>\n', "memory; data.raw takes {tmx"),
        ("x.xml", b"<?xml version='1.0'?>\n<dataset>\n<collection>\n", "data.raw takes {xml: "),
        ("x", b'<srcset setid="x" srclang="any">\n', "give it the suffix .sgm, which data.raw"),
        ("x.xml", b"<?xml version='1.0'?>\n<rss/>\n", "XML or HTML; extract its sentences"),
        ("x.en", b"PAR1" + bytes(99), "a Parquet table"),
        ("x.en", bytes(64), "a binary file; give a text file"),
        (
            "x.tar.gz",
            gzip.compress(b"x".ljust(257, b"\0") + b"ustar", mtime=0),
            "a tar archive; unpack it",
        ),
    ],
)
def test_what_it_looks_like_and_what_to_do(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_lines(path)
    assert str(caught.value).startswith(f"{path}: looks like ") and words in str(caught.value)
    with pytest.raises(UserError, match="looks like"):
        open_bytes(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        PAIR * 4,  # a few lines with tabs
        PAIR * 9 + b"no tab\n",
        b"{not json}\n" * 5,
        JSON_LINES + b"a line\n",
        b"[1, 2]\n",
        b"[{0}] of {1}\n",
        b"[[Link]]\n",
        b"the man\r\nthe woman\r\n",
        "\ufeffthe män\n".encode(),
        b"a null \x00 byte in a line of text\n",
        "我们\n".encode() * 9,
    ],
)
def test_text_is_text(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert len(read_lines(tmp_path / "x")) == content.count(b"\n")


def test_tabs_may_be_meant(tmp_path: Path) -> None:
    (tmp_path / "terms.tsv").write_bytes(PAIR * 9)
    assert len(read_lines(tmp_path / "terms.tsv", tabs=True)) == 9


def test_standard_input_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for read in (lambda: read_lines("-"), lambda: list(read_buffers(10))):
        content = io.TextIOWrapper(io.BytesIO(JSON_LINES))
        monkeypatch.setattr(sys, "stdin", content)
        with pytest.raises(UserError, match="standard input: looks like JSON lines"):
            read()


def test_a_folder_and_a_name_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "part.en").write_text("the man\n")
    with pytest.raises(UserError, match=r"is a folder; give one of its files, such as .*part\.en"):
        read_lines(tmp_path)
    for read in (read_lines, text_fingerprint):
        with pytest.raises(UserError, match="cannot be read: File name too long"):
            read(tmp_path / ("x" * 300))


def test_a_file_of_someone_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "x"
    path.write_text(json.dumps("x"))
    monkeypatch.setattr("io.FileIO", refuse)  # tests may run as root, who may read everything
    with pytest.raises(UserError, match="x: cannot be read: Permission denied; .* chmod u\\+r"):
        open_bytes(path)


def test_json_lines_are_no_other_json(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(JSON_LINES)
    open_bytes(path, allowed=("json",)).close()
    path.write_bytes(b'[\n {"en": "a"},\n {"en": "b"}\n]\n')
    with pytest.raises(UserError, match=r"not one object per line; write it so: jq -c '.\[\]'"):
        open_bytes(path, allowed=("json",))


def test_lines_of_xml_may_end_with_carriage_returns(tmp_path: Path) -> None:
    (tmp_path / "x.tmx").write_bytes(b"<?xml version='1.0'?>\r<tmx/>\r")
    open_bytes(tmp_path / "x.tmx", allowed=("xml", "utf16")).close()
