"""Changes of text that make a model robust: case, punctuation at the end, typing mistakes, noise.

Each takes a generator where it draws, so that the caller decides what the draws depend on.
"""

from __future__ import annotations

import random

_ENDS = ".!?…:;。！？：；…"
_NEIGHBORS = {
    key: row[max(0, place - 1) : place] + row[place + 1 : place + 2]
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for place, key in enumerate(row)
}
"""Keys next to each other on a keyboard."""
_RANGES = ((0x21, 0x7E), (0xA1, 0x24F), (0x391, 0x3C9), (0x410, 0x44F), (0x1F300, 0x1F5FF))
"""Characters of noise: ASCII, Latin, Greek, Cyrillic letters and pictures."""
_MOST_NOISE = 8


def title(text: str) -> str:
    """Return the text with a capital at the start of each word; the rest stays as it is."""
    return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))


def without_end(text: str) -> str:
    """Return the text without the punctuation at its end, unless nothing else is there."""
    return text.rstrip(_ENDS).rstrip() or text


def add_typos(text: str, rate: float, draw: random.Random) -> str:
    """Return the text with a mistake in some words: a letter is left out, doubled, swapped with the
    next one, or replaced by its neighbor on the keyboard.

    Args:
        text: the text.
        rate: probability of a mistake per word of at least two letters.
        draw: generator.
    """
    return " ".join(
        _misspelt(word, draw) if len(word) > 1 and draw.random() < rate else word
        for word in text.split(" ")
    )


def _misspelt(word: str, draw: random.Random) -> str:
    place = draw.randrange(len(word) - 1)
    before, letter, after = word[:place], word[place], word[place + 1 :]
    kind = draw.randrange(4)
    if kind == 0:
        return before + after
    if kind == 1:
        return before + letter + letter + after
    if kind == 2:
        return before + after[0] + letter + after[1:]
    near = _NEIGHBORS.get(letter.lower(), letter)
    return before + near[draw.randrange(len(near))] + after


def noise(draw: random.Random) -> str:
    """Return random characters in one to eight words, which no model can translate."""
    words = []
    for _ in range(draw.randint(1, _MOST_NOISE)):
        first, last = _RANGES[draw.randrange(len(_RANGES))]
        letters = (chr(draw.randint(first, last)) for _ in range(draw.randint(1, 6)))
        words.append("".join(letters))
    return " ".join(words)
