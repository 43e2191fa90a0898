"""The pieces of Hugging Face tokenizers: text to the ids of their folder, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import sentencepiece as spm

from ds_seq.errors import UserError
from ds_seq.text.sentencepiece import stored_processor
from ds_seq.text.tokenizer import SPACE

FAST = "tokenizer.json"
VOCAB = "vocab.json"
MARIAN = ("source.spm", "target.spm")
M2M = "sentencepiece.bpe.model"


class Pieces(Protocol):
    """Conversion between text and the ids of the folder."""

    languages: dict[str, int]
    """Language symbols: of `tokenizer.json` all special ones."""

    def frame(self, end: int) -> tuple[list[int], list[int]]:
        """Return the ids in front of a text, and those after the id `end` that ends it."""

    def encode_lines(self, lines: Sequence[str], is_source: bool) -> list[list[int]]: ...

    def split_lines(self, lines: Sequence[str], is_source: bool) -> list[list[str]]: ...

    def piece(self, number: int) -> str | None: ...

    def number(self, piece: str) -> int | None: ...

    def join(self, pieces: Sequence[str], is_source: bool) -> str: ...


class FastPieces:
    """A `tokenizer.json`, run by the package `tokenizers`."""

    def __init__(self, content: str, name: str) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise UserError(
                f"{name}: needs the package tokenizers; install it with `pip install tokenizers`"
            ) from None
        try:
            self._tokenizer = Tokenizer.from_str(content)
        except Exception as error:  # the package raises nothing narrower
            raise UserError(f"{name}: {FAST}: cannot be read ({error})") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self.languages = {token.content: i for i, token in added.items() if token.special}
        self._around: list[int] = self._tokenizer.encode("").ids
        self._name = name

    def frame(self, end: int) -> tuple[list[int], list[int]]:
        around = self._around
        if end not in around:
            return around, []
        place = around.index(end)
        if around[place + 1 :] and around[:place]:
            raise UserError(
                f"{self._name}: puts {self.piece(around[-1])} after the end of a text that also "
                "begins with a symbol, which is not supported; use a model such as mBART-50"
            )
        return around[:place], around[place + 1 :]

    def encode_lines(self, lines: Sequence[str], is_source: bool) -> list[list[int]]:
        return [each.ids for each in self._encoded(lines)]

    def split_lines(self, lines: Sequence[str], is_source: bool) -> list[list[str]]:
        return [each.tokens for each in self._encoded(lines)]

    def _encoded(self, lines: Sequence[str]) -> list[Any]:
        return list(self._tokenizer.encode_batch(list(lines), add_special_tokens=False))

    def piece(self, number: int) -> str | None:
        piece: str | None = self._tokenizer.id_to_token(number)
        return piece

    def number(self, piece: str) -> int | None:
        number: int | None = self._tokenizer.token_to_id(piece)
        return number

    def join(self, pieces: Sequence[str], is_source: bool) -> str:
        decoder = self._tokenizer.decoder
        return str(" ".join(pieces) if decoder is None else decoder.decode(list(pieces)))


class SentencePieces:
    """A SentencePiece model per side, or one, and the ids of its pieces in `vocab.json`."""

    def __init__(self, ids: Mapping[str, Any], files: Mapping[str, str], name: str) -> None:
        self._ids: dict[str, int] = {piece: int(number) for piece, number in ids.items()}
        models = MARIAN if MARIAN[0] in files else (M2M, M2M)
        if not set(models) <= files.keys():
            raise UserError(f"{name}: has no {' and '.join(models)}; copy the whole folder")
        self._source, self._target = (stored_processor(files[model], name) for model in models)
        self._is_marian = MARIAN[0] in files
        self._unknown = self._ids.get("<unk>", 0)
        codes = _language_codes(files)
        self.languages: dict[str, int] = {c: i for c, i in self._ids.items() if c.startswith(">>")}
        for offset, code in enumerate(codes):  # M2M100: they follow the pieces
            self.languages[code] = len(self._ids) + offset
        if not self._is_marian and not codes:
            raise UserError(
                f"{name}: names no languages; add the list `additional_special_tokens` of the "
                "model's hub page (`__af__`, `__am__`, ...) to its tokenizer_config.json"
            )
        self._names = {number: piece for piece, number in (self._ids | self.languages).items()}

    def frame(self, end: int) -> tuple[list[int], list[int]]:
        # M2M100 has the language; Marian's languages, if any, are part of the text
        return [] if self._is_marian else sorted(self.languages.values())[:1], []

    def encode_lines(self, lines: Sequence[str], is_source: bool) -> list[list[int]]:
        rows = self.split_lines(lines, is_source)
        return [[self._ids.get(piece, self._unknown) for piece in row] for row in rows]

    def split_lines(self, lines: Sequence[str], is_source: bool) -> list[list[str]]:
        processor = self._source if is_source else self._target
        return [self._tagged(line, processor) for line in lines]

    def _tagged(self, line: str, processor: spm.SentencePieceProcessor) -> list[str]:
        """Return the pieces of a line, which may begin with a language such as `>>de<<`."""
        first, _, rest = line.partition(" ")
        if first in self.languages and first.startswith(">>"):
            return [first, *processor.EncodeAsPieces(rest)]
        return list(processor.EncodeAsPieces(line))

    def piece(self, number: int) -> str | None:
        return self._names.get(number)

    def number(self, piece: str) -> int | None:
        return self._ids.get(piece)

    def join(self, pieces: Sequence[str], is_source: bool) -> str:
        return "".join(pieces).replace(SPACE, " ").strip()


def _language_codes(files: Mapping[str, str]) -> list[str]:
    """Return the language symbols of M2M100, which some versions keep in one file, some in another.

    They follow the pieces in this order.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        settings = json.loads(files.get(name, "{}"))
        for key in ("additional_special_tokens", "extra_special_tokens"):
            if codes := settings.get(key):
                return [str(code["content"] if isinstance(code, dict) else code) for code in codes]
    return []
