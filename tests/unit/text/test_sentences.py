"""Sentences of a running text."""

from __future__ import annotations

from ds_seq.text.sentences import split_sentences


def parts(text: str) -> list[str]:
    return [sentence.text for sentence in split_sentences(text)]


def test_signs_that_end_sentences() -> None:
    assert parts("One. Two! Three? Four") == ["One.", "Two!", "Three?", "Four"]
    assert parts('He said: "No." Then he left.') == ['He said: "No."', "Then he left."]
    chinese = ["\u4f60\u597d\u3002", "\u4f60\u597d\uff01", "\u518d\u89c1"]
    assert parts("".join(chinese)) == chinese


def test_signs_that_do_not() -> None:
    for text in (
        "It costs 3.50 or 1.000.000 of them",
        "Mr. Smith met Dr. Jones and J. R. Brown",
        "e.g. Paris, i.e. a town, z.B. Berlin",
        "wait... then go on",
        "see www.example.org today",
    ):
        assert parts(text) == [text]


def test_lines_end_sentences_and_nothing_is_lost() -> None:
    text = "First line. It has two.\n\n \nSecond  one\r\nthird"
    found = list(split_sentences(text))
    assert [(each.paragraph, each.text) for each in found] == [
        (0, "First line."), (0, "It has two."), (3, "Second  one"), (4, "third"),
    ]  # fmt: skip
    assert "".join("".join(each.text for each in found).split()) == "".join(text.split())
    assert parts("") == parts(" \n\n") == []
