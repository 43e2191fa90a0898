"""Parallel text in every form gives the same pairs, and what is wrong with it is one line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
import subprocess
from collections.abc import Callable
from html import escape
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest

from ds_seq.errors import UserError
from ds_seq.text import compression
from ds_seq.text.forms import Form, JsonLines, Lines, Segments, Table
from ds_seq.text.lines import (
    LineBlock,
    PairPath,
    count_pairs,
    decode_lines,
    read_blocks,
    read_pairs,
)
from ds_seq.text.xml_forms import Tmx, WmtXml

ODD = "\u2028 \u2029 \x85 \x0b \x0c \x1c \x1d \x1e"
"""What `str.splitlines` takes for line ends; XML allows two of them only."""
PAIRS = [
    ("the man & <b>", "der Mann & <b>"),
    ("one\u2028line", "eine\x85Zeile"),
    ("  two ", "zwei"),
    ('"q"', "'a'"),
]


def two_files(folder: Path, pairs: list[tuple[str, str]], end: str = "\n") -> tuple[Path, Path]:
    paths = folder / "x.en", folder / "x.de"
    for side, path in enumerate(paths):
        path.write_bytes("".join(f"{pair[side]}{end}" for pair in pairs).encode())
    return paths


def write_lines(folder: Path) -> PairPath:
    return PairPath(*two_files(folder, PAIRS))


def write_table(folder: Path) -> PairPath:
    path = folder / "x.tsv"
    rows = ["score\ten\tde", *(f"0.5\t{source}\t{target}" for source, target in PAIRS)]
    path.write_bytes("\r\n".join(rows).encode())
    return PairPath(path, path, Table((2, 3), header=True))


def write_json(folder: Path) -> PairPath:
    path = folder / "x.jsonl"
    rows = [{"id": 1, "translation": {"en": source, "de": target}} for source, target in PAIRS]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return PairPath(path, path, JsonLines(("translation.en", "translation.de")))


def write_sgm(folder: Path) -> PairPath:
    paths = []
    for side, (name, kind) in enumerate((("x-src.en.sgm", "src"), ("x-ref.de.sgm", "ref"))):
        segments = [
            f'<seg id="{number}"> {escape(pair[side])} </seg>\n<hl>\n'
            for number, pair in enumerate(PAIRS, 1)
        ]
        text = (
            f'<{kind}set setid="x" srclang="any">\n<DOC docid="a">\n<p>\n{"".join(segments)}</p>\n'
        )
        path = folder / name
        path.write_text(f"{text}</DOC>\n</{kind}set>\n")
        paths.append(path)
    return PairPath(*paths, Segments())


def write_tmx(folder: Path) -> PairPath:
    units = [
        f'<tu><tuv xml:lang="de-AT"><seg>{escape(target)}</seg></tuv>\n'
        f'<tuv xml:lang="fr"><seg>x</seg></tuv>'
        f'<tuv xml:lang="EN-us"><seg>{escape(source)}<bpt i="1">&lt;b>\n</bpt></seg></tuv></tu>'
        for source, target in PAIRS
    ]
    path = folder / "x.tmx"
    head = '<?xml version="1.0" encoding="UTF-16"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n'
    path.write_bytes(
        f'{head}<tmx version="1.4"><body>{"".join(units)}</body></tmx>'.encode("utf-16")
    )
    return PairPath(path, path, Tmx(("en", "de")))


def write_wmt(folder: Path) -> PairPath:
    sides = [
        "".join(
            f'<p><seg id="{n}">{escape(pair[side])}\n</seg></p>' for n, pair in enumerate(PAIRS)
        )
        for side in (0, 1)
    ]
    path = folder / "x.xml"
    path.write_text(
        '<?xml version="1.0"?><dataset id="x"><collection id="y"><doc origlang="en" id="z">'
        f'<src lang="en">{sides[0]}</src><ref lang="de" translator="A">{sides[1]}</ref>'
        '<ref lang="de" translator="B"><p><seg id="0">other</seg></p></ref>'
        '<hyp system="S" lang="de"><p><seg id="0">other</seg></p></hyp>'
        "</doc></collection></dataset>"
    )
    return PairPath(path, path, WmtXml(("en", "de")))


WRITERS: dict[str, Callable[[Path], PairPath]] = {
    "lines": write_lines,
    "table": write_table,
    "json": write_json,
    "sgm": write_sgm,
    "tmx": write_tmx,
    "wmt": write_wmt,
}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_every_form_gives_the_pairs(form: str, size: int, tmp_path: Path) -> None:
    text = WRITERS[form](tmp_path)
    assert count_pairs([text, text]) == 2 * len(PAIRS)
    # an XML segment is stripped, as all readers of test sets do
    is_xml = text.form.unit == "segment"
    expected = [tuple(side.strip() if is_xml else side for side in pair) for pair in PAIRS]
    blocks = list(read_blocks([text], size))
    assert all(len(block.source) == len(block.target) <= size for block in blocks)
    decoded = [zip(*decode_lines(block), strict=True) for block in blocks]
    assert list(chain.from_iterable(decoded)) == expected
    assert list(zip(*read_pairs(text), strict=True)) == expected
    assert [block.first_line - text.form.first for block in blocks] == list(range(0, 4, size))


def zstd(content: bytes) -> bytes:
    if find_spec("zstandard") is not None:
        import zstandard

        return bytes(zstandard.ZstdCompressor().compress(content))
    return subprocess.run(["zstd", "-qc"], input=content, capture_output=True, check=True).stdout


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}
HAS_ZSTD = find_spec("zstandard") is not None or shutil.which("zstd") is not None


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("form", WRITERS)
def test_every_form_may_be_compressed(form: str, suffix: str, tmp_path: Path) -> None:
    if suffix == ".zst" and not HAS_ZSTD:
        pytest.skip("neither the package zstandard nor the program zstd is installed")
    text = WRITERS[form](tmp_path)
    packed = [path.with_name(f"{path.name}{suffix}") for path in text]
    for path, other in zip(text, packed, strict=True):
        other.write_bytes(COMPRESSORS[suffix](path.read_bytes()))
    assert read_pairs(PairPath(*packed, text.form)) == read_pairs(text)


@pytest.mark.parametrize("way", ["package", "program"])
def test_zstd_by_package_or_program(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = find_spec("zstandard") is None if way == "package" else shutil.which("zstd") is None
    if missing:
        pytest.skip(f"the {way} is not installed")
    if way == "program":
        monkeypatch.setattr(compression, "find_spec", lambda name: None)
    line = b"the man sees the dog %d\n"
    content = b"".join(line % number for number in range(60_000))
    path = tmp_path / "x.zst"
    path.write_bytes(zstd(content) + zstd(b"another frame\n"))
    text = PairPath(path, path)
    assert count_pairs([text]) == 60_001
    assert next(read_blocks([text], 2)).source == [
        b"the man sees the dog 0",
        b"the man sees the dog 1",
    ]
    path.write_bytes(zstd(content)[:-200])
    with pytest.raises(UserError, match=r"x\.zst: cannot be decompressed \(.*incomplete$"):
        count_pairs([text])
    path.write_bytes(b"no frame\n")
    with pytest.raises(UserError, match=r"x\.zst: cannot be decompressed \("):
        count_pairs([text])
    path.unlink()
    with pytest.raises(UserError, match=r"x\.zst: no such file"):
        count_pairs([text])


def test_zstd_without_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "find_spec", lambda name: None)
    monkeypatch.setattr(compression.shutil, "which", lambda name: None)
    (tmp_path / "x.zst").write_bytes(b"")
    with pytest.raises(UserError, match="package zstandard or the program zstd.* pip install"):
        count_pairs([PairPath(tmp_path / "x.zst", tmp_path / "x.zst")])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_marks_never_change_a_count(end: str, bom: bytes, tmp_path: Path) -> None:
    pairs = [(f"a{ODD}b", "c"), ("d", f"{ODD}e"), ("", ""), ("f\rg", "h")]
    source, target = two_files(tmp_path, pairs, end)
    source.write_bytes(bom + source.read_bytes())
    table, rows = tmp_path / "x.tsv", tmp_path / "x.jsonl"
    table.write_bytes(bom + "".join(f"{s}\t{t}{end}" for s, t in pairs).encode())
    rows.write_bytes(
        bom + "".join(f"{json.dumps(pair, ensure_ascii=False)}{end}" for pair in
                      ({"a": s, "b": t} for s, t in pairs)).encode()
    )  # fmt: skip
    for text in (
        PairPath(source, target),
        PairPath(table, table, Table((1, 2), header=False)),
        PairPath(rows, rows, JsonLines(("a", "b"))),
    ):
        assert count_pairs([text]) == 4
        found = read_pairs(text)
        is_json = isinstance(text.form, JsonLines)
        assert found[0] == [f"a{ODD}b", "d", "", "f g" if is_json else "f\rg"], text.form
        assert found[1] == ["c", f"{ODD}e", "", "h"]


def test_a_line_break_in_a_sentence_is_a_space(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "one\\r\\ntwo\\n", "b.c": "x"}\n')
    assert read_pairs(PairPath(path, path, JsonLines(("a", "b.c")))) == (["one two "], ["x"])


TMX_HEAD = b'<?xml version="1.0"?><tmx version="1.4"><body>'
FRENCH = TMX_HEAD + b'<tu><tuv xml:lang="fr"><seg>a</seg></tuv></tu></body></tmx>'
BOMB = b'<?xml version="1.0"?><!DOCTYPE tmx [<!ENTITY a "x">]><tmx>&a;</tmx>'


@pytest.mark.parametrize(
    ("form", "content", "words"),
    [
        (Table((1, 2), header=False), b"a\tb\nc\n", "line 2 has 1 column(s), but column 2 is"),
        (Table((4, 1), header=True), b"h\na\tb\tc\n", "line 2 has 3 column(s), but column 4"),
        (JsonLines(("a", "b")), b'{"a": "x", "b": "y"}\n[1]\n', "line 2 is no JSON object; each"),
        (JsonLines(("a", "b")), b'{"a": "x", "b": "y"}\n\n', "line 2 is no JSON object; each"),
        (JsonLines(("a", "b.c")), b'{"a": "x", "b": "y"}\n', "line 1 has no key b.c; its keys are"),
        (JsonLines(("a", "b")), b'{"a": "x", "b": null}\n', "line 1: b should be text, not null"),
        (Segments(), b"<srcset>\n</srcset>\n", "has no <seg>; is it a test set of WMT or IWSLT?"),
        (
            Segments(),
            b'<seg id="1">a</seg>\n<seg id="2">b',
            "2 segments begin, but 1 end; get",
        ),
        (Tmx(("en", "de")), TMX_HEAD + b"<tu>", "line 1: is no well-formed XML (no element found)"),
        (Tmx(("en", "de")), TMX_HEAD + b"\xff\xfe", "is no well-formed XML (not well-formed"),
        (Tmx(("en", "de")), FRENCH, "has no pair of en and de; it has fr. Name the two codes"),
        (Tmx(("en", "de")), BOMB, "declares entities"),
        (WmtXml(("en", "de")), b"<dataset></dataset>", "has no pair of en and de; it has no lang"),
    ],
)
def test_what_is_wrong_is_one_line(form: Form, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_pairs(PairPath(path, path, form))
    message = str(refused.value)
    assert message.startswith(f"{path}: ") and words in message and "\n" not in message


@pytest.mark.parametrize("form", [Lines(), Segments()])
def test_unequal_sides(form: Form, tmp_path: Path) -> None:
    source, target = tmp_path / "s", tmp_path / "t"
    source.write_text("<seg>a</seg>\n<seg>b</seg>\n<seg>c</seg>\n")
    target.write_text("<seg>a</seg>\n")
    words = rf"differ in the number of {form.unit}s: .*s has 3, .*t has 1; "
    for read in (lambda text: count_pairs([text]), read_pairs):
        with pytest.raises(UserError, match=words):
            read(PairPath(source, target, form))
    with pytest.raises(
        UserError, match=rf"differ in the number of {form.unit}s: .*t has 1, .*s has 3"
    ):
        list(read_blocks([PairPath(target, source, form)], 2))


def test_units_that_lack_a_language_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_tmx(tmp_path)
    content = text.source.read_bytes().decode("utf-16")
    unit = '<tu><tuv xml:lang="de"><seg>x</seg></tuv></tu></body>'
    text.source.write_bytes(content.replace("</body>", unit).encode("utf-16"))
    for _ in range(2):
        assert len(read_pairs(text)[0]) == len(PAIRS)
    (line,) = capsys.readouterr().err.splitlines()
    assert "1 units lack en or de and are left out; 4 have both" in line


INVALID = [b"a\tb", b"\xff\tc", b"d\te", b"f\t\xe4 g", b"h\ti"]


def invalid_text(folder: Path, choice: str) -> PairPath:
    path = folder / f"{choice}.tsv"
    path.write_bytes(b"\n".join(INVALID))
    return PairPath(path, path, Table((1, 2), header=False), choice)  # type: ignore[arg-type]


def rows(blocks: list[LineBlock]) -> list[tuple[int, bytes, bytes]]:
    return [
        (number, *pair)
        for block in blocks
        for number, pair in enumerate(
            zip(block.source, block.target, strict=True), block.first_line
        )
    ]


@pytest.mark.parametrize("size", [1, 2, 10])
def test_invalid_utf8_by_choice(
    size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dropped = rows(list(read_blocks([invalid_text(tmp_path, "drop")], size)))
    assert dropped == [(1, b"a", b"b"), (3, b"d", b"e"), (5, b"h", b"i")]
    assert "drop.tsv are not UTF-8 and were left out; line(s) 2, 4\n" in capsys.readouterr().err
    replaced = rows(list(read_blocks([invalid_text(tmp_path, "replace")], size)))
    mark = "\ufffd".encode()
    assert replaced[1] == (2, mark, b"c") and replaced[3] == (4, b"f", mark + b" g")
    assert "repaired with U+FFFD; line(s) 2, 4\n" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"stop\.tsv: line 2: invalid UTF-8 at byte 1"):
        list(read_blocks([invalid_text(tmp_path, "stop")], size))
    kept = rows(list(read_blocks([invalid_text(tmp_path, "keep")], size)))
    assert [pair[1] + b"\t" + pair[2] for pair in kept] == INVALID
