"""Normalization of text, the same for training and for use."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

# Characters without width and control characters that are not white space. The joiners U+200C
# and U+200D stay: Persian and the scripts of India need them.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff]")


@dataclass(frozen=True)
class Normalizer:
    """Removes invisible characters and makes every run of white space one space.

    Normalizing twice changes nothing.

    Attributes:
        nfkc: apply Unicode's NFKC (folds full-width letters, ligatures, superscripts ...).
    """

    nfkc: bool

    def __call__(self, text: str) -> str:
        """Return the normalized text."""
        text = _INVISIBLE.sub("", text)
        if self.nfkc:
            text = unicodedata.normalize("NFKC", text)
        return " ".join(text.split())
