"""Cleaning: every reason, order, duplicates over blocks, workers, failures."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from ds_seq.data import clean as clean_module
from ds_seq.data.clean import (
    CleanReport,
    clean,
    normalize_corpus,
    reason_to_drop,
)
from ds_seq.errors import UserError
from ds_seq.text.lines import PairPath
from ds_seq.text.normalize import Normalizer
from ds_seq.text.scripts import count_words
from tests.values import clean_options

KEEP = Normalizer(nfkc=False, fold_spaces=False)


def _text(folder: Path, name: str, source: bytes, target: bytes) -> PairPath:
    path = PairPath(folder / f"{name}.source", folder / f"{name}.target")
    path.source.write_bytes(source)
    path.target.write_bytes(target)
    return path


def _lines(path: PairPath) -> list[tuple[str, str]]:
    source, target = (side.read_text(encoding="utf-8").split("\n")[:-1] for side in path)
    return list(zip(source, target, strict=True))


@pytest.mark.parametrize(
    ("text", "kept", "folded"),
    [
        ("  two \t words\u2028now ", "two words now", "two words now"),
        (" 10\u00a0%\u3000是 ", "10\u00a0%\u3000是", "10 % 是"),
        ("\u3000first", "\u3000first", "first"),
        ("soft\u00adhyphen\u200b\u2060", "soft\u00adhyphen\u200b\u2060", "softhyphen"),
        ("\ufeffand \x07bell \x00 ", "and bell", "and bell"),
        ("\u00a0 \u200b\u3000", "", ""),
        ("می\u200cخواهم", "می\u200cخواهم", "می\u200cخواهم"),
        ("ﬁne ２ … ½", "ﬁne ２ … ½", "ﬁne ２ … ½"),
    ],
)
def test_normalize(text: str, kept: str, folded: str) -> None:
    for fold_spaces, expected in ((False, kept), (True, folded)):
        normalize = Normalizer(nfkc=False, fold_spaces=fold_spaces)
        assert normalize(text) == expected
        assert normalize(expected) == expected, "doing it twice changes nothing more"


def test_nfkc_folds_compatible_forms() -> None:
    assert Normalizer(nfkc=True, fold_spaces=False)("ﬁne ２") == "fine 2"


def test_words_of_scripts_without_spaces() -> None:
    assert count_words("drei kurze Wörter") == 3
    assert count_words("我爱你 ") == 4  # three signs and the run of them
    assert reason_to_drop("I love you very much", "我非常爱你", clean_options()) is None
    assert count_words("\U00020000\U000212c8\U00030edd") == 4  # CJK of the planes 2 and 3


HUMANS = "All human beings are born free and equal in dignity and rights."


@pytest.mark.parametrize(
    "text",
    [
        "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
        "ມະນຸດທຸກຄົນເກີດມາມີກຽດສັກສີ ສິດທິ ເສລີພາບ ແລະຄວາມສະເໝີພາບເທົ່າທຽມກັນ",
        "មនុស្សទាំងអស់ កើតមកមានសេរីភាព និងសមភាព ក្នុងផ្នែកសេចក្ដីថ្លៃថ្នូរនិងសិទ្ធិ",
        "လူတိုင်းသည် တူညီ လွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့် လည်းကောင်း၊ တူညီလွတ်လပ်သော အခွင့်အရေးများဖြင့် မွေးဖွားလာသူများ ဖြစ်သည်။",
        "འགྲོ་བ་མིའི་རིགས་རྒྱུད་ཡོངས་ལ་སྐྱེས་ཙམ་ཉིད་ནས་ཆེ་མཐོངས་དང༌། ཐོབ་ཐངགི་རང་དབང་འདྲ་མཉམ་དུ་ཡོད་ལ།",
        "人人生而自由,在尊严和权利上一律平等。",
    ],
    ids=["th", "lo", "km", "my", "bo", "zh"],
)  # fmt: skip
def test_the_ratio_filter_knows_scripts_without_spaces(text: str) -> None:
    """The first article of the Declaration of Human Rights, and the same several times."""
    assert reason_to_drop(HUMANS, text, clean_options()) is None
    assert reason_to_drop(HUMANS, " ".join([text] * 5), clean_options()) == "ratio"
    assert reason_to_drop(" ".join([HUMANS] * 8), text, clean_options()) == "ratio"


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("", "b", "empty"),
        ("b", "", "empty"),
        ("one", "eins zwei", "too_short"),
        ("one two", "eins zwei drei vier fünf sechs", "too_long"),
        ("one two", "eins zwei drei vier fünf", "ratio"),
        ("one two", "one two", "identical"),
        ("one two", "eins zwei drei vier", None),
    ],
)
def test_reasons(source: str, target: str, reason: str | None) -> None:
    options = clean_options(min_words=2, max_words=5, max_ratio=2.0)
    assert reason_to_drop(source, target, options) == reason


def test_clean_counts_every_pair_once(tmp_path: Path) -> None:
    source = b"a b\n\na b\n\xff b\na  b \nsame\nx y\n"
    target = b"c d\nc\ne f\nc d\nc d\nsame\nz\xc3\n"
    report = clean(
        [_text(tmp_path, "raw", source, target)],
        output := PairPath(tmp_path / "out" / "s", tmp_path / "out" / "t"),
        clean_options(),
    )
    assert _lines(output) == [("a b", "c d"), ("a b", "e f")]
    expected = {"invalid_utf8": 2, "empty": 1, "identical": 1, "duplicate": 1}
    assert {reason: n for reason, n in report.dropped.items() if n} == expected
    assert (report.total, report.kept) == (7, 2)


def test_filters_can_be_switched_off(tmp_path: Path) -> None:
    raw = _text(tmp_path, "raw", b"a\na\nb\n", b"a\na\nc\n")
    output = PairPath(tmp_path / "s", tmp_path / "t")
    options = clean_options(drop_identical=False, drop_duplicates=False)
    assert clean([raw], output, options).kept == 3


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_first_of_equal_pairs_stays_wherever_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(clean_module, "BLOCK_LINES", block)
    numbers = np.random.default_rng(0).integers(40, size=200).tolist()
    text = [
        _text(tmp_path, name, *("".join(f"{side}{n}\n" for n in part).encode() for side in "st"))
        for name, part in (("first", numbers[:90]), ("second", numbers[90:]))
    ]
    output = PairPath(tmp_path / "s", tmp_path / "t")
    report = clean(text, output, clean_options())
    assert _lines(output) == [(f"s{n}", f"t{n}") for n in dict.fromkeys(numbers)]
    assert report.dropped["duplicate"] == 200 - len(set(numbers))


def test_workers_do_not_change_the_output(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean_module, "BLOCK_LINES", 40)
    reports: list[CleanReport] = []
    for workers in (1, 3):
        output = PairPath(tmp_path / f"{workers}.s", tmp_path / f"{workers}.t")
        raw = PairPath(corpus / "train.en", corpus / "train.de")
        reports.append(clean([raw], output, clean_options(max_words=8), workers))
    assert reports[0] == reports[1]
    assert 0 < reports[0].kept < reports[0].total
    for side in "st":
        assert (tmp_path / f"1.{side}").read_bytes() == (tmp_path / f"3.{side}").read_bytes()


def test_compressed_text(tmp_path: Path) -> None:
    raw = PairPath(tmp_path / "s.gz", tmp_path / "t")
    raw.source.write_bytes(gzip.compress(b"one\n"))
    raw.target.write_bytes(b"eins\n")
    output = PairPath(tmp_path / "out.s", tmp_path / "out.t")
    clean([raw], output, clean_options())
    assert _lines(output) == [("one", "eins")]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (b"a\nb\n", b"c\n", r"source has 2, .*target has 1;"),
        (b"a\n", b"a\n", r"dropped all 1 sentence pairs .*\(identical 1\)"),
        (b"", b"", "there is no sentence pair in"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_failure_leaves_the_older_output_alone(
    tmp_path: Path, source: bytes, target: bytes, message: str, workers: int
) -> None:
    raw = _text(tmp_path, "raw", source, target)
    output = _text(tmp_path, "out", b"older\n", b"text\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        clean([raw], output, clean_options(), workers)
    assert _lines(output) == [("older", "text")]
    assert sorted(tmp_path.iterdir()) == before, "and no temporary file"


def test_missing_file_is_named(tmp_path: Path) -> None:
    path = PairPath(tmp_path / "none", tmp_path / "none")
    with pytest.raises(UserError, match="none: no such file"):
        clean([path], PairPath(tmp_path / "s", tmp_path / "t"), clean_options())


def test_held_out_text_keeps_every_line(tmp_path: Path) -> None:
    raw = _text(tmp_path, "raw", b"a \na \nx\n", b"a\na\n1 2 3 4 5 6 7 8 9\n")
    output = PairPath(tmp_path / "s", tmp_path / "t")
    assert normalize_corpus([raw], output, KEEP) == 3
    assert _lines(output) == [("a", "a"), ("a", "a"), ("x", "1 2 3 4 5 6 7 8 9")]


@pytest.mark.parametrize(
    ("target", "message"),
    [(b"a\n \n", "target: line 2 is empty"), (b"a\n\xff\n", "target: line 2: invalid UTF-8")],
)
def test_held_out_text_with_a_bad_line_names_it(
    tmp_path: Path, target: bytes, message: str
) -> None:
    raw = _text(tmp_path, "raw", b"a\nb\n", target)
    with pytest.raises(UserError, match=message):
        normalize_corpus([raw], PairPath(tmp_path / "s", tmp_path / "t"), KEEP)
