"""The short ways of normalizing and of counting words give what the long ones give."""

from __future__ import annotations

import pytest

from ds_seq.text.normalize import Normalizer
from ds_seq.text.scripts import count_words

CHARACTERS = [
    *map(chr, range(0x3100)),
    *map(chr, range(0x3100, 0xD800, 61)),
    "\ufeff",
    "\U00020000",
]


@pytest.mark.parametrize(("nfkc", "fold_spaces"), [(False, False), (False, True), (True, False)])
def test_the_short_way_is_taken_only_where_nothing_changes(nfkc: bool, fold_spaces: bool) -> None:
    normalize = Normalizer(nfkc, fold_spaces)
    for character in CHARACTERS:
        text = f"{character}a {character} b{character}"
        assert normalize(text) == normalize(f"\t{text}"), "a tab at the start forces the long way"


def test_single_spaces_are_counted_as_words_are_split() -> None:
    for character in CHARACTERS:
        text = f"a{character}b c"
        assert count_words(text) == count_words(f"\t{text}"), hex(ord(character))
    assert [count_words(text) for text in ("", " ", " a", "a ", "a  b", "a b")] == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]
