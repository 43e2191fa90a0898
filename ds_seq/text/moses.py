"""Tokenization and punctuation by Moses' rules, for vocabularies made for other toolkits."""

from __future__ import annotations

import re
import unicodedata

from ds_seq.errors import UserError

# punctuation of full width and the like -> ASCII
_WIDE = str.maketrans(
    {
        "，": ",", "、": ",", "：": ":", "∶": ":", "；": ";", "？": "?", "！": "!", "％": "%",
        "（": "(", "）": ")", "〈": "<", "〉": ">", "【": "[", "】": "]",
        "”": '"', "“": '"', "《": '"', "》": '"', "「": '"', "」": '"', "’": "'",
        "～": "~", "…": "...", "━": "-",
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
    }
)  # fmt: skip
_WIDE_STOP = re.compile(r"[。．]\s*")


class Moses:
    """Moses' tokenizer and detokenizer, with the settings of fairseq and FSMT.

    Args:
        language: language code of the text.
        what: what needs them, for the message.

    Raises:
        UserError: sacremoses is not installed.
    """

    def __init__(self, language: str, what: str) -> None:
        try:
            from sacremoses import MosesDetokenizer, MosesPunctNormalizer, MosesTokenizer
        except ImportError:
            raise UserError(
                f"{what} needs the package sacremoses; install it with `pip install sacremoses`"
            ) from None
        self._tokenizer, self._detokenizer = MosesTokenizer(language), MosesDetokenizer(language)
        self._punctuation = MosesPunctNormalizer(lang=language)

    def normalize(self, text: str) -> str:
        """Return the text with plain punctuation and without invisible characters."""
        plain = self._punctuation.normalize(_WIDE_STOP.sub(". ", text.translate(_WIDE)))
        return "".join(each for each in plain if not unicodedata.category(each).startswith("C"))

    def tokenize(self, text: str) -> str:
        """Return the tokens, with spaces between them; marks of markup are escaped."""
        options = {"aggressive_dash_splits": True, "escape": True, "return_str": True}
        return str(self._tokenizer.tokenize(text, **options))

    def detokenize(self, text: str) -> str:
        """Return the text of tokens with spaces between them."""
        return str(self._detokenizer.detokenize(text.split()))
