"""Look at many lines at once: which of them are out of the ordinary, and what they are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ds_seq.text.scripts import SPACELESS, count_words

_NUM_CODES = 0x110000
_DELETE = 0x7F


class Look:
    r"""What lines are made of.

    Args:
        content: the lines in UTF-8, separated by `\n`.

    Attributes:
        num_lines: number of lines.
        characters: the different characters beyond ASCII.
        odd: places of the lines that have a space at an end, two in a row, or a character that is
            not printable. All white space but the ordinary space is not printable.
    """

    def __init__(self, content: bytes) -> None:
        data = np.frombuffer(content, np.uint8)
        is_end = data == ord("\n")
        self._ends = np.flatnonzero(is_end)
        self._places = np.flatnonzero(data >= 0xC0)
        self._codes = _codes(data, self._places)
        seen = np.zeros(_NUM_CODES, bool)
        seen[self._codes] = True
        self.num_lines = len(self._ends) + 1
        self.characters = "".join(map(chr, np.flatnonzero(seen).tolist()))
        self.odd = np.unique(
            [
                *self._lines_at(np.flatnonzero(_is_odd(data, is_end))),
                *self.lines_with([char for char in self.characters if not char.isprintable()]),
            ]
        ).tolist()

    def lines_with(self, characters: Sequence[str]) -> list[int]:
        """Return the places of the lines that have one of some characters beyond ASCII."""
        if not characters:
            return []
        return self._lines_at(self._places[np.isin(self._codes, list(map(ord, characters)))])

    def _lines_at(self, places: NDArray[np.intp]) -> list[int]:
        found: list[int] = np.unique(np.searchsorted(self._ends, places)).tolist()
        return found


def look_at_lines(lines: Sequence[str]) -> Look | None:
    r"""Look at lines; None if one holds a `\n`, or half of a surrogate pair."""
    try:
        look = Look("\n".join(lines).encode())
    except UnicodeEncodeError:
        return None
    return look if look.num_lines == max(len(lines), 1) else None


def num_words(lines: Sequence[str], look: Look | None = None) -> NDArray[np.int64]:
    """Return `count_words` (N,) of normalized lines; of most, from their spaces alone.

    Args:
        lines: the lines.
        look: what `look_at_lines` has found in them, or in lines that were normalized since.
    """
    look = look or look_at_lines(lines)
    if look is None:
        return np.fromiter(map(count_words, lines), np.int64, len(lines))
    counts = np.array([line.count(" ") for line in lines], np.int64) + 1
    if not all(lines):
        counts[[not line for line in lines]] = 0
    for place in {*look.odd, *look.lines_with(SPACELESS.findall(look.characters))}:
        counts[place] = count_words(lines[place])
    return counts


def _is_odd(data: NDArray[np.uint8], is_end: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which bytes are control characters, or spaces that are not between two words."""
    is_space = data == ord(" ")
    is_odd = ((data < ord(" ")) & ~is_end) | (data == _DELETE)
    is_odd[1:] |= is_space[1:] & (is_space[:-1] | is_end[:-1])
    is_odd[:-1] |= is_space[:-1] & is_end[1:]
    is_odd[:1] |= is_space[:1]
    is_odd[-1:] |= is_space[-1:]
    return is_odd


def _codes(data: NDArray[np.uint8], places: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return the code points of the characters of UTF-8 text that begin at places (N,)."""
    first = data[places].astype(np.int64)
    codes = (first & 0x1F) << 6 | data[places + 1] & 0x3F
    for size, least, mask in ((3, 0xE0, 0x0F), (4, 0xF0, 0x07)):
        longer = np.flatnonzero(first >= least)
        if not len(longer):
            break
        code = first[longer] & mask
        for offset in range(1, size):
            code = code << 6 | data[places[longer] + offset] & 0x3F
        codes[longer] = code
    return codes
