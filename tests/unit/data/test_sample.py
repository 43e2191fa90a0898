"""The sample text: alignment of help pages and verses, and a split that does not leak."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from ds_seq.data import sample
from ds_seq.data.sample import Unit
from ds_seq.errors import UserError

_PAGE = """<html><p id="other" class="x">A <b>paragraph</b> in one language &amp; page only.</p>
<h1 id="hd_1" dir="auto">{title}</h1>
<p id="par_2" class="paragraph">{text}</p></html>"""


def _help(root: Path, german_text: str) -> None:
    pages = {
        "en-US": _PAGE.format(title="A &lt;good&gt; title", text="First one. <i>Second</i> one."),
        "de": _PAGE.format(title="Ein &lt;guter&gt; Titel", text=german_text).replace("other", "o"),
    }
    for language, content in pages.items():
        folder = root / "usr/share/libreoffice/help" / language / "text/scalc"
        folder.mkdir(parents=True)
        (folder / "page.html").write_text(content, encoding="utf-8")
        (folder / f"only_{language}.html").write_text(content, encoding="utf-8")


def test_help_pages_are_aligned_by_paragraph_and_sentence(tmp_path: Path) -> None:
    _help(tmp_path, "Erster Satz. Zweiter <b>Satz</b>.")
    assert list(sample.help_units(tmp_path)) == [
        Unit("scalc/page.html", "A <good> title", "Ein <guter> Titel"),
        Unit("scalc/page.html", "First one.", "Erster Satz."),
        Unit("scalc/page.html", "Second one.", "Zweiter Satz."),
    ]


def test_paragraphs_of_unequal_sentences_stay_whole(tmp_path: Path) -> None:
    _help(tmp_path, "Erster und zweiter Satz.")
    assert list(sample.help_units(tmp_path))[1:] == [
        Unit("scalc/page.html", "First one. Second one.", "Erster und zweiter Satz.")
    ]


def test_package_without_pages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no help pages"):
        list(sample.help_units(tmp_path))


def test_verses_are_joined_by_number(tmp_path: Path) -> None:
    rows = [
        (1, "4", 1, 1, 1, "first"),
        (2, "4", 1, 1, 2, "second"),
        (1, "e", 1, 1, 1, "erster"),
        (2, "e", 1, 1, 2, "zweiter"),
        (2, "k", 1, 1, 2, "of another version"),
    ]
    connection = sqlite3.connect(tmp_path / "bible.db")
    connection.execute("CREATE TABLE bible (id, bbName, bNumber, cNumber, vNumber, vText)")
    connection.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    assert list(sample.bible_units(tmp_path / "bible.db")) == [
        Unit("1.1", "first", "erster"),
        Unit("1.1", "second", "zweiter"),
    ]
    (tmp_path / "bad.db").write_bytes(b"no database at all" * 10)
    with pytest.raises(UserError, match="bad.db: lacks the expected table"):
        list(sample.bible_units(tmp_path / "bad.db"))


def test_tsv_needs_tabs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("one\teins\textra\ntwo\tzwei\n", encoding="utf-8")
    assert [unit[1:] for unit in sample.tsv_units(path)] == [("one", "eins"), ("two", "zwei")]
    path.write_text("one\teins\ntwo zwei\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"pairs.tsv: line 2 has no tab"):
        list(sample.tsv_units(path))


def _units() -> list[Unit]:
    """40 pages of 5 sentences; one sentence of each page occurs on another page with new digits."""
    own = "page {} holds {} of these"
    words = [f"w{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(40)]
    units = []
    for page in range(40):
        for row in range(4):
            text = own.format(words[page], words[row])
            units.append(Unit(str(page), text, text.upper() + " ja"))
        shared = f"chapter {page}: always {words[page // 2]} the same"
        units.append(Unit(str(page), shared, f"Kapitel {page} {words[page // 2]} immer {page}"))
    return units


def test_select_drops_what_differs_only_in_digits_and_signs() -> None:
    kept = sample.select(_units())
    assert len(kept) == 40 * 4 + 20
    assert sample.select([Unit("p", "too short", "zu kurz")]) == []


def test_split_holds_out_whole_pages_without_leaks() -> None:
    units = _units()  # not selected, so that pages share sentences
    splits = sample.split(units, 18, seed=1)
    assert [len(splits[name]) for name in ("valid", "test")] == [18, 18]
    page_of = {(unit.source, unit.target): unit.page for unit in units}
    pages = {name: {page_of[pair] for pair in pairs} for name, pairs in splits.items()}
    assert pages["train"].isdisjoint(pages["valid"] | pages["test"])
    assert pages["valid"].isdisjoint(pages["test"])

    def letters(pairs: list[sample.Pair]) -> set[str]:
        return {"".join(c for c in source if c.isalpha()) for source, _ in pairs}

    assert letters(splits["train"]).isdisjoint(letters(splits["valid"] + splits["test"]))
    assert len(splits["train"]) > 100


def test_split_depends_on_the_seed_alone() -> None:
    assert sample.split(_units(), 20, 1) == sample.split(_units(), 20, 1)
    assert sample.split(_units(), 20, 1) != sample.split(_units(), 20, 2)


def test_too_little_text_says_so() -> None:
    with pytest.raises(UserError, match="only 200 usable pairs"):
        sample.split(_units(), 100, 1)


@pytest.mark.parametrize("num_pages", [1, 2])
def test_too_few_pages_are_reported(num_pages: int) -> None:
    units = [Unit(str(n % num_pages), f"{c} text", c) for n, c in enumerate("abcdefghijklmnop")]
    with pytest.raises(UserError, match=f"{num_pages} pages are too few"):
        sample.split(units, 5, 1)


def test_missing_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get not found"):
        sample.fetch_help(tmp_path)


def test_failing_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("apt-get", "dpkg"):
        (tools / name).write_text("#!/bin/sh\necho 'E: no such host' >&2\nexit 100\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/bin:/usr/bin")
    with pytest.raises(UserError, match="exit code 100: E: no such host; is there a network"):
        sample.fetch_help(tmp_path)
