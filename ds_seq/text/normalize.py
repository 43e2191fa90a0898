"""Normalization of text, identical in training and inference."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from ds_seq.names import Punctuation, UnicodeForm

if TYPE_CHECKING:
    from ds_seq.text.look import Look

# Control characters that are not white space, and the byte order mark: never text.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]")
# Runs of ordinary spaces, tabs and everything that ends a line or a paragraph.
_SPACES = re.compile("[\t-\r\x1c-\x20\x85\u2028\u2029]+")
# Soft hyphen, zero-width space, word joiner. The joiners U+200C and U+200D are kept in any case
# because Persian and Indic scripts need them.
_INVISIBLE = re.compile("[\u00ad\u200b\u2060]")
# Each of Moses' rules needs one of these.
_MOSES_MARKS = re.compile("[()%:;`\r„“”–—´‘’‚…«»\xa0]|''|  ")


@dataclass(frozen=True)
class Normalizer:
    """Make a line of text clean: no control characters, no line breaks, single spaces.

    Runs of ordinary spaces, tabs and line breaks become one space, and none is left at the ends.
    Text without a visible character becomes empty. Normalization is idempotent.

    Attributes:
        nfkc: whether to apply Unicode NFKC (folds full-width letters, ligatures, superscripts ...).
        fold_spaces: whether to also replace no-break, ideographic and all other spaces with
            ordinary ones, and to remove soft hyphens, zero-width spaces and word joiners.
        form: another Unicode form to apply, instead of `nfkc`.
        punctuation: rules that normalize quotes, dashes and the like.
    """

    nfkc: bool
    fold_spaces: bool
    form: UnicodeForm | None = None
    punctuation: Punctuation | None = None

    @property
    def keeps_ordinary_lines(self) -> bool:
        """Whether lines in which `ds_seq.text.look` finds nothing odd are returned as they are."""
        return not (self.nfkc or self.form is not None or self.punctuation is not None)

    def lines(self, texts: Sequence[str], look: Look | None = None) -> list[str]:
        """Return many normalized texts; most need no call.

        Args:
            texts: the texts.
            look: what `look_at_lines` has found in them.
        """
        if not self.keeps_ordinary_lines:
            return [self(text) for text in texts]
        from ds_seq.text.look import look_at_lines  # loads numpy, which `ds-seq check` does without

        look = look or look_at_lines(texts)
        if look is None:
            return [self(text) for text in texts]
        result = list(texts)
        for place in look.odd:
            result[place] = self(texts[place])
        return result

    def __call__(self, text: str) -> str:
        """Return the normalized text."""
        # True of most text, and of none with a control character or a space other than U+0020.
        is_plain = text.isprintable() and "  " not in text
        if (
            is_plain
            and (text.isascii() or not (self.nfkc or self.form))
            and self.punctuation is None
        ):
            return text.strip(" ")
        if not text.isprintable():
            text = _CONTROLS.sub("", text)
        if self.nfkc:
            text = unicodedata.normalize("NFKC", text)
        elif self.form is not None:
            text = unicodedata.normalize(self.form, text)
        if self.punctuation is not None:
            text = _moses()(text)
        if text.isprintable():  # most lines: their only spaces are ordinary ones
            return " ".join(text.split()) if "  " in text else text.strip(" ")
        if self.fold_spaces:
            return " ".join(_INVISIBLE.sub("", text).split())
        text = _SPACES.sub(" ", text).strip(" ")
        return text if has_text(text) else ""


def has_text(text: str) -> bool:
    """Return whether a text has a visible character."""
    return bool(_INVISIBLE.sub("", text).strip())


@cache
def _moses() -> Callable[[str], str]:
    """Return Moses' normalization of punctuation, as sacremoses has it, for all languages alike.

    Its rules that depend on the language (commas and quotes, separators of digits) are left out:
    input to translate is normalized as training text is, and so are both sides.
    """
    from sacremoses import MosesPunctNormalizer  # takes a while, and few need it

    once: Callable[[str], str] = MosesPunctNormalizer(
        norm_quote_commas=False, norm_numbers=False
    ).normalize

    def normalize(text: str) -> str:
        before = ""
        while before != text and _MOSES_MARKS.search(text):  # what a rule makes, another may change
            before, text = text, once(text)
        return text

    return normalize
