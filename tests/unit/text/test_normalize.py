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
        assert normalize.lines([text]) == [normalize(text)]


def test_what_makes_words_without_spaces_is_looked_for_everywhere() -> None:
    for character in CHARACTERS:
        text = f"{character * 8} c"
        with_others = count_words(f"{text} \u3042") - 2  # the long way
        assert count_words(text) == with_others, hex(ord(character))
