"""Many lines at once: the same as line by line, whatever characters they have."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ds_seq.text.look import Look, look_at_lines, num_words
from ds_seq.text.normalize import Normalizer
from ds_seq.text.scripts import count_words

# plain letters, all kinds of white space, controls, invisible signs, and scripts without spaces
_PIECES = [
    *"abc de", " ", "  ", "\t", "\r", "\x02", "\x7f", "\x85", "\xa0", "\u2028", "\u3000", "\u200b",
    "\ufeff", "é", "–", "ß", "Я", "中", "日本", "ไทย", "\u0f0b", "\U00020000", "\U0001f600",
]  # fmt: skip


def _lines(seed: int, share: float) -> list[str]:
    draw = random.Random(seed)
    odd = [piece for piece in _PIECES if not piece.isalpha()]
    return [
        "".join(
            draw.choice(_PIECES if draw.random() < share else "ab ")
            for _ in range(draw.randrange(9))
        )
        for _ in range(200)
    ] + odd


@pytest.mark.parametrize("fold_spaces", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_lines_and_words_are_those_of_single_lines(seed: int, fold_spaces: bool) -> None:
    lines = _lines(seed, [0.0, 0.02, 0.5][seed % 3])
    normalizer = Normalizer(nfkc=False, fold_spaces=fold_spaces)
    expected = [normalizer(line) for line in lines]
    assert normalizer.lines(lines) == expected
    counts = [count_words(line) for line in expected]
    assert num_words(expected).tolist() == counts
    assert num_words(expected, look_at_lines(lines)).tolist() == counts


def test_what_cannot_be_looked_at_is_left_to_single_lines() -> None:
    for lines in (["a\nb", "c"], ["a", "\ud800"]):
        assert look_at_lines(lines) is None
        normalizer = Normalizer(nfkc=False, fold_spaces=True)
        assert normalizer.lines(lines) == [normalizer(line) for line in lines]
    assert num_words([]).tolist() == []


def test_characters_of_all_sizes_are_found() -> None:
    text = ["aé", "中 b", "\U0001f600", "plain", "é中"]
    look = Look("\n".join(text).encode())
    assert look.characters == "é中\U0001f600" and look.odd == []
    assert look.lines_with("é") == [0, 4] and look.lines_with("中\U0001f600") == [1, 2, 4]
    assert look.lines_with("") == [] and look.num_lines == 5
    assert np.array_equal(Look(b" a\nb c\nd \ne  f\n\ng\t").odd, [0, 2, 3, 5])
