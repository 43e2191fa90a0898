"""Normalization of text, identical in training and inference."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

# Zero-width characters and control characters other than white space. The joiners U+200C and
# U+200D are kept because Persian and Indic scripts need them.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff]")


@dataclass(frozen=True)
class Normalizer:
    """Remove invisible characters and collapse each run of white space to one space.

    Normalization is idempotent.

    Attributes:
        nfkc: whether to apply Unicode NFKC (folds full-width letters, ligatures, superscripts ...).
    """

    nfkc: bool

    def __call__(self, text: str) -> str:
        """Return the normalized text."""
        text = _INVISIBLE.sub("", text)
        if self.nfkc:
            text = unicodedata.normalize("NFKC", text)
        return " ".join(text.split())
