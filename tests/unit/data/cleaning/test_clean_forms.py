"""Cleaning makes the same of a text in whatever form it is, and says where a pair is there."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
import subprocess
from collections.abc import Callable
from html import escape
from pathlib import Path

import pytest

from ds_seq.config.clean import CleanConfig
from ds_seq.data import clean as clean_module
from ds_seq.data.clean import Corpus, clean_corpora
from ds_seq.data.cleaning.block import clean_block
from ds_seq.data.cleaning.blocks import read_corpora
from ds_seq.data.cleaning.build import build_corpus
from ds_seq.errors import UserError
from ds_seq.text.forms import Form, JsonLines, Lines, Segments, Table
from ds_seq.text.lines import PairPath
from ds_seq.text.xml_forms import Tmx, WmtXml
from tests.fresh import words_printed_by
from tests.values import clean_options

PAIRS = [
    (b"the man", b"der Mann"),
    (b"one", b""),
    (b"a & b", b"a und b"),
    (b"bad", b"schlecht\xff"),
    (b"the man", b"der Mann"),
    (b"same", b"same"),
    (b"five", "fünf".encode()),
]
SCORES = ["0.5", "0.9", "0.7", "0.8", "0.6", "0.9", "0.1"]


def _table(pairs: list[tuple[bytes, bytes]], side: int) -> bytes:
    return b"x\tde\ten\n" + b"".join(b"x\t%s\t%s\n" % (target, source) for source, target in pairs)


def _json(pairs: list[tuple[bytes, bytes]], side: int) -> bytes:
    rows = [b'{"a": "%s", "b": {"c": "%s"}}\n' % pair for pair in pairs]
    return b"".join(rows)


def _lines(pairs: list[tuple[bytes, bytes]], side: int) -> bytes:
    return b"".join(pair[side] + b"\n" for pair in pairs)


def _segments(pairs: list[tuple[bytes, bytes]], side: int) -> bytes:
    segments = [b"<seg>%s</seg>\n" % pair[side].replace(b"&", b"&amp;") for pair in pairs]
    return b"<refset>\n%s</refset>\n" % b"".join(segments)


def _escaped(pairs: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    # XML with invalid UTF-8 is no XML
    return [(escape(one.decode()), escape(two.decode("utf-8", "ignore"))) for one, two in pairs]


def _tmx(pairs: list[tuple[bytes, bytes]], side: int) -> bytes:
    units = [
        f'<tu><tuv xml:lang="de"><seg>{target}</seg></tuv>'
        f'<tuv xml:lang="en"><seg>{source}</seg></tuv></tu>\n'
        for source, target in _escaped(pairs)
    ]
    return f"<?xml version='1.0'?>\n<tmx><body>{''.join(units)}</body></tmx>".encode()


def _wmt(pairs: list[tuple[bytes, bytes]], side: int) -> bytes:
    sides = [
        "".join(f'<seg id="{n}">{pair[i]}</seg>' for n, pair in enumerate(_escaped(pairs)))
        for i in (0, 1)
    ]
    return (
        "<?xml version='1.0'?>\n<dataset><collection><doc>"
        f'<src lang="en">{sides[0]}</src><ref lang="de">{sides[1]}</ref>'
        "</doc></collection></dataset>"
    ).encode()


def _zstd(content: bytes) -> bytes:
    try:
        done = subprocess.run(["zstd", "-qc"], input=content, capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("the program zstd is not installed")
    return done.stdout


FORMS: dict[str, tuple[Form, tuple[str, str], Callable[[list[tuple[bytes, bytes]], int], bytes]]]
FORMS = {
    "lines": (Lines(), ("x.en", "x.de"), _lines),
    "table": (Table((3, 2), header=True), ("x.tsv", "x.tsv"), _table),
    "json": (JsonLines(("a", "b.c")), ("x.jsonl", "x.jsonl"), _json),
    "segments": (Segments(), ("x.en.sgm", "x.de.sgm"), _segments),
    "tmx": (Tmx(("en", "de")), ("x.tmx", "x.tmx"), _tmx),
    "wmt": (WmtXml(("en", "de")), ("x.xml", "x.xml"), _wmt),
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _zstd,
}  # fmt: skip


def corpus_of(folder: Path, form: str, suffix: str = "") -> Corpus:
    kind, names, write = FORMS[form]
    paths = [folder / f"{name}{suffix}" for name in names]
    for side, path in enumerate(paths):
        path.write_bytes(PACKERS[suffix](write(PAIRS, side)))
    (folder / "x.score").write_text("".join(f"{score}\n" for score in SCORES))
    text = PairPath(paths[0], paths[1], kind, "keep")
    changes = {"score_files": [str(folder / "x.score")], "min_score": 0.2}
    return build_corpus("news", [text], ("en", "de"), CleanConfig(), changes)


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("form", FORMS)
def test_a_text_in_any_form_is_cleaned_alike(
    form: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean_module, "BLOCK_LINES", 3)
    corpus = corpus_of(tmp_path, form, suffix)
    output = PairPath(tmp_path / "out.en", tmp_path / "out.de")
    report = clean_corpora([corpus], output)
    is_valid = form in ("tmx", "wmt")  # the pair that is invalid UTF-8 elsewhere
    kept = ["a & b", *(["bad"] if is_valid else []), "the man"]
    assert output.source.read_text().splitlines() == kept
    assert output.target.read_text().splitlines()[:1] == ["a und b"]
    used = {reason: number for reason, number in report.dropped.items() if number}
    expected = {"empty": 1, "identical": 1, "score": 1, "duplicate": 1}
    assert used == expected | ({} if is_valid else {"invalid_utf8": 1})
    (found,) = json.loads(report.to_json())["corpora"]
    first = corpus.inputs[0].form.first
    assert found["name"] == "news"
    source, unit = str(corpus.inputs[0].source), corpus.inputs[0].form.unit
    for reason, row in (("empty", 1), ("score", 6), ("duplicate", 0)):
        (example,) = found["examples"][reason]
        assert (example["file"], example[unit]) == (source, row + first), reason
        sides = (example["source"], example["target"])
        assert sides == tuple(side.decode() for side in PAIRS[row])
    where = f"{source}: segment 7\n" if unit == "segment" else f"{source}:{6 + first}\n"
    assert where in report.to_text()


@pytest.mark.parametrize("form", FORMS)
def test_interrupted_work_goes_on(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean_module, "BLOCK_LINES", 3)
    corpus = corpus_of(tmp_path, form)
    output = PairPath(tmp_path / "out.en", tmp_path / "out.de")

    def die(amount: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clean_corpora([corpus], output, progress=die)
    amounts: list[int] = []
    assert clean_corpora([corpus], output, progress=amounts.append).total == len(PAIRS)
    assert sum(amounts) == len(PAIRS)


def test_unfinished_work_is_known_in_another_process(tmp_path: Path) -> None:
    forms = [kind for kind, _, _ in FORMS.values()]
    (tmp_path / "forms").write_bytes(pickle.dumps(forms))
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'forms')!r}, 'rb')))"
    assert words_printed_by(code) == repr(forms).split()


def test_a_header_has_no_score_and_a_dropped_pair_has_one(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, "table")
    output = PairPath(tmp_path / "out.en", tmp_path / "out.de")
    expected = clean_corpora([corpus], output).to_json()
    (text,) = corpus.inputs
    dropping = corpus.__class__(
        "news", [PairPath(*text, text.form, "drop")], corpus.options, corpus.scores
    )
    assert clean_corpora([dropping], output).to_json() == expected
    (tmp_path / "x.score").write_text("0.5\nx\n" + "0.5\n" * 5)
    with pytest.raises(UserError, match=r"x.score: line 2: 'x' is no score"):
        clean_corpora([corpus], output)
    (tmp_path / "x.score").write_text("0.5\n" * 8)
    with pytest.raises(UserError, match=r"x.score: has 8 lines, but .*x.tsv has 7 pairs; line n"):
        clean_corpora([corpus], output)


@pytest.mark.parametrize(
    "content", ["a b\nc d\n\ne f\n", "a b\nc d\n\ne f", "a\rb\nc\x02 d\n\n e  f\n"]
)
def test_ends_of_lines_and_a_byte_order_mark_are_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(clean_module, "BLOCK_LINES", 3)
    made = []
    for name, text in {
        "plain": content.encode(),
        "marked": b"\xef\xbb\xbf" + content.encode(),
        "windows": content.replace("\n", "\r\n").encode(),
    }.items():
        for side in ("en", "de"):
            (tmp_path / f"{name}.{side}").write_bytes(text.replace(b"f", side.encode()))
        corpus = Corpus(
            name, [PairPath(tmp_path / f"{name}.en", tmp_path / f"{name}.de")],
            clean_options(drop_identical=False),
        )  # fmt: skip
        output = PairPath(tmp_path / f"{name}.out.en", tmp_path / f"{name}.out.de")
        report = clean_module.clean_corpora([corpus], output)
        made.append(([path.read_bytes() for path in output], report.dropped, report.total))
        assert report.total == 4 and report.dropped["empty"] == 1
    assert made[0] == made[1] == made[2]
    assert made[0][0][0].splitlines()[-1] == b"e en"


def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    paths = [tmp_path / f"text.{side}" for side in ("en", "de")]
    for path in paths:
        path.write_text("one\ntwo\nthree\n")
    corpus = Corpus("text", [PairPath(*paths)], clean_options(drop_identical=False))
    (block,) = read_corpora([corpus], 10)
    paths[1].write_text("one\ntwo three\n")
    with pytest.raises(UserError, match=r"text\.de: has changed while it was read; start again"):
        clean_block([corpus], block)
