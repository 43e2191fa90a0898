"""Normalization of text, identical in training and inference."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

# Control characters that are not white space, and the byte order mark: never text.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]")
# Runs of ordinary spaces, tabs and everything that ends a line or a paragraph.
_SPACES = re.compile("[\t-\r\x1c-\x20\x85\u2028\u2029]+")
# Soft hyphen, zero-width space, word joiner. The joiners U+200C and U+200D are kept in any case
# because Persian and Indic scripts need them.
_INVISIBLE = re.compile("[\u00ad\u200b\u2060]")


@dataclass(frozen=True)
class Normalizer:
    """Make a line of text clean: no control characters, no line breaks, single spaces.

    Runs of ordinary spaces, tabs and line breaks become one space, and none is left at the ends.
    Text without a visible character becomes empty. Normalization is idempotent.

    Attributes:
        nfkc: whether to apply Unicode NFKC (folds full-width letters, ligatures, superscripts ...).
        fold_spaces: whether to also replace no-break, ideographic and all other spaces with
            ordinary ones, and to remove soft hyphens, zero-width spaces and word joiners.
    """

    nfkc: bool
    fold_spaces: bool

    def __call__(self, text: str) -> str:
        """Return the normalized text."""
        # True of most text, and of none with a control character or a space other than U+0020.
        if text.isprintable() and "  " not in text and (text.isascii() or not self.nfkc):
            return text.strip(" ")
        text = _CONTROLS.sub("", text)
        if self.nfkc:
            text = unicodedata.normalize("NFKC", text)
        if self.fold_spaces:
            return " ".join(_INVISIBLE.sub("", text).split())
        text = _SPACES.sub(" ", text).strip(" ")
        return text if has_text(text) else ""


def has_text(text: str) -> bool:
    """Return whether a text has a visible character."""
    return bool(_INVISIBLE.sub("", text).strip())
