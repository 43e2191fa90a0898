"""Scripts that are written without spaces between words, and how many words they hold."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Han of all planes, Kana and Bopomofo: about one word per character.
_IDEOGRAPHS = re.compile(
    "[\u3005-\u3007\u3021-\u3029\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U0001aff0-\U0001b16f\U00020000-\U0003ffff]"
)
# Thai, Lao, Myanmar, Khmer, Tai Le, New Tai Lue, Tai Tham, Tai Viet, Javanese and Balinese. In
# parallel text, a word of English has about four letters of them, signs above and below apart.
_SYLLABIC = re.compile(
    "[\u0e01-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u108f\u1780-\u17d3\u1950-\u1974"
    "\u1980-\u19c9\u1a20-\u1a7c\u1b00-\u1b4b\ua980-\ua9c0\ua9e0-\ua9ef\uaa60-\uaadf]"
)
_TSHEG = "\u0f0b"  # the mark between the syllables of Tibetan and Dzongkha
SPACELESS = re.compile(f"[{_TSHEG}{_IDEOGRAPHS.pattern[1:-1]}{_SYLLABIC.pattern[1:-1]}]")
"""Finds a character of which each, or each few, count as a word."""
_BEYOND = re.compile("[\u0e01-\U0010ffff]")  # one range, which is found in half the time
_LETTERS_PER_WORD = 4
_TIBETAN = re.compile("[\u0f40-\u0fbc]")


def count_words(text: str) -> int:
    """Count words separated by spaces; in scripts without them, estimate from the characters.

    Each Chinese or Japanese character is also a word, each four letters of the scripts of
    Southeast Asia, and each syllable of Tibetan.
    """
    words = len(text.split())
    if text.isascii() or _BEYOND.search(text) is None or SPACELESS.search(text) is None:
        return words
    letters = sum(unicodedata.category(c) == "Lo" for c in _SYLLABIC.findall(text))
    ideographs = len(_IDEOGRAPHS.findall(text))
    return words + ideographs + letters // _LETTERS_PER_WORD + text.count(_TSHEG)


def lacks_spaces(lines: Iterable[str]) -> bool:
    """Return whether most letters of a text belong to scripts without spaces between words."""
    letters = spaceless = 0
    for line in lines:
        letters += sum(map(str.isalpha, line))
        if not line.isascii():
            found = [c for each in (_IDEOGRAPHS, _SYLLABIC, _TIBETAN) for c in each.findall(line)]
            spaceless += sum(map(str.isalpha, found))
    return 2 * spaceless > letters
