"""Vocabularies that were made for fairseq: a `dict.txt`, and the merges or the SentencePiece model.

Text becomes ids, and ids text, as in fairseq: tokenization by Moses' rules if the vocabulary has
it, pieces, ids of the dictionary; and back. One thing differs: `<s>`, `<pad>` and `</s>` that
stand in a text are unknown here, while fairseq takes them for its special symbols.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from ds_seq.errors import UserError
from ds_seq.names import SPECIAL_PIECES, Side
from ds_seq.records import parse_json, record
from ds_seq.text.fairseq_dict import FAIRSEQ_SYMBOLS, Dictionary
from ds_seq.text.merges import CONTINUES, Merges
from ds_seq.text.moses import Moses
from ds_seq.text.normalize import Normalizer
from ds_seq.text.sentencepiece import stored_processor
from ds_seq.text.tokenizer import SPACE
from ds_seq.text.vocab_file import read_vocab_file

_SPECIAL = frozenset(SPECIAL_PIECES) - {"<unk>"}


@record
class StoredDict(TypedDict):
    """Content of `FairseqDictTokenizer.to_bytes`: its files, text or base64."""

    dictionary: str
    codes: NotRequired[str]
    sentencepiece: NotRequired[str]
    moses: bool
    user_symbols: list[str]
    added_symbols: NotRequired[list[str]]
    source_opening: NotRequired[str]
    target_opening: NotRequired[str]


class FairseqDictTokenizer:
    """A `Tokenizer` of the files of a vocabulary that was made for fairseq.

    Unknown text is decoded as `<unk>`. A user symbol is a symbol of the dictionary that is never
    split; one that opens a line, such as the language tag `<2de>`, is its first id.

    Args:
        stored: the files.
        normalizer: applied to text before it is encoded.
        name: name of the vocabulary in error messages.
        language: language code of the text, for Moses' rules.
        side: side of the text, which may have a symbol in front; None: text without one.

    Attributes:
        symbols: fairseq's special symbols, and the one in front.
        fingerprint: differs between vocabularies that encode the same text differently.
        tag_ids: ids of the user symbols.
        dictionary: the dictionary.

    Raises:
        UserError: a file is damaged, a user symbol or one in front is not in the dictionary, or
            sacremoses is needed and not installed.
    """

    def __init__(
        self,
        stored: StoredDict,
        normalizer: Normalizer,
        name: str,
        language: str = "en",
        side: Side | None = None,
    ) -> None:
        self._stored, self._normalizer = stored, normalizer
        self._name, self._language, self._side = name, language, side
        self.dictionary = _dictionary(stored, f"{name} (dictionary)")
        self.symbols = replace(FAIRSEQ_SYMBOLS, opening=self._opening())
        codes, model = stored.get("codes"), stored.get("sentencepiece")
        self._merges = None if codes is None else Merges(codes.encode(), f"{name} (codes)")
        self._processor = None if model is None else stored_processor(model, name)
        self._whole = frozenset(stored["user_symbols"])
        for symbol in stored["user_symbols"]:
            if symbol not in self.dictionary.ids:
                raise UserError(
                    f"{name}: data.vocab.user_symbols: {symbol} is not in the dictionary, which "
                    "cannot grow; remove it"
                )
        self.tag_ids = frozenset(self.dictionary.ids[symbol] for symbol in self._whole)
        moses = f"{name}: data.vocab.fairseq.moses"
        self._moses = Moses(language, moses) if stored["moses"] else None
        self.fingerprint = hashlib.sha256(self.to_bytes()).hexdigest()

    def _opening(self) -> tuple[int, ...]:
        openings = (self._stored.get("source_opening"), self._stored.get("target_opening"))
        for symbol, side in zip(openings, ("source", "target"), strict=True):
            if symbol is not None and symbol not in self.dictionary.ids:
                raise UserError(
                    f"{self._name}: data.vocab.fairseq.{side}_opening: {symbol} is not in the "
                    "dictionary; add it to data.vocab.fairseq.added_symbols"
                )
        own = {"source": openings[0], "target": openings[1], None: None}[self._side]
        return () if own is None else (self.dictionary.ids[own],)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of symbols that no text has, those that were added included."""
        added = {self.dictionary.ids[symbol] for symbol in self._stored.get("added_symbols", ())}
        own = self.symbols
        ends = {own.pad, own.eos, own.start, *own.opening, self.dictionary.ids["<s>"]}
        return frozenset(added | ends)

    @classmethod
    def train(
        cls,
        files: Sequence[Path],
        *,
        size: int,
        user_symbols: Sequence[str] = (),
        normalizer: Normalizer | None = None,
        **options: Any,
    ) -> FairseqDictTokenizer:
        """Read the files of a vocabulary; nothing is trained. See `TokenizerKind.train`.

        Args:
            files: not read.
            size: number of symbols, special and made-up ones included.
            user_symbols: symbols of the dictionary that are never split.
            normalizer: applied to text before it is encoded.
            options: those of `data.vocab.fairseq`.

        Raises:
            UserError: a file is missing or damaged, or the size is another one.
        """
        stored = _read_files(user_symbols=list(user_symbols), **options)
        # parsed here, too, to name the file and not the vocabulary made of it
        name = str(options["dictionary"])
        found = len(_dictionary(stored, name))
        if found != size:
            raise UserError(
                f"data.vocab.size: {size:,}, but {name} has {found:,} symbols, the four special "
                f"ones included; set data.vocab.size={found}"
            )
        normalizer = normalizer or Normalizer(nfkc=False, fold_spaces=False)
        return cls(stored, normalizer, str(options.get("sentencepiece") or name))

    @classmethod
    def from_bytes(
        cls, content: bytes, *, normalizer: Normalizer | None = None, name: str
    ) -> FairseqDictTokenizer:
        """Restore a vocabulary from the bytes of `to_bytes`; see `TokenizerKind.from_bytes`."""
        advice = "make it again with `ds-seq prepare`"
        stored = parse_json(content, StoredDict, Path(name), advice)
        return cls(stored, normalizer or Normalizer(nfkc=False, fold_spaces=False), name)

    def to_bytes(self) -> bytes:
        """Return the files of the vocabulary as JSON."""
        return json.dumps(self._stored, ensure_ascii=False, sort_keys=True).encode()

    def __reduce__(self) -> tuple[type[FairseqDictTokenizer], tuple[Any, ...]]:
        arguments = (self._stored, self._normalizer, self._name, self._language, self._side)
        return FairseqDictTokenizer, arguments

    @property
    def stored(self) -> StoredDict:
        """Its files, and what it does with text."""
        return self._stored

    @property
    def marks_ends(self) -> bool:
        """Whether the merges mark the last piece of a word, and not the end as such."""
        return self._merges is not None and not self._merges.end_is_apart

    @property
    def dictionary_bytes(self) -> bytes:
        """The `dict.txt` as it was read."""
        return self._stored["dictionary"].encode()

    def for_side(self, language: str, is_source: bool) -> FairseqDictTokenizer:
        """Return this vocabulary for a side and a language, whose rules of Moses it uses."""
        has_opening = "source_opening" in self._stored or "target_opening" in self._stored
        if not has_opening and (self._moses is None or language == self._language):
            return self
        side: Side = "source" if is_source else "target"
        return FairseqDictTokenizer(self._stored, self._normalizer, self._name, language, side)

    def __len__(self) -> int:
        return len(self.dictionary)

    def normalize(self, text: str) -> str:
        """Return the text as it is read; see `Tokenizer.normalize`."""
        return self._normalizer(text)

    def encode(self, text: str) -> list[int]:
        """Normalize and encode a line; see `Tokenizer.encode`."""
        ids, unknown = self.dictionary.ids, self.symbols.unk
        return [
            unknown if piece in _SPECIAL else ids.get(piece, unknown) for piece in self._split(text)
        ]

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """Encode many lines; see `encode`."""
        return [self.encode(line) for line in lines]

    def _split(self, text: str) -> list[str]:
        text = self._normalizer(text)
        opening: list[str] = []
        if self._whole:
            first, _, rest = text.partition(" ")
            if first in self._whole:
                opening, text = [first], rest
        if self._moses is not None:
            text = self._moses.tokenize(text)
        if self._merges is not None:
            text = " ".join(self._merges.split(text, self._whole))
        elif self._processor is not None:
            text = " ".join(self._processor.EncodeAsPieces(text))
        return opening + text.split()  # at every kind of space, as fairseq does

    def decode(self, ids: Sequence[int]) -> str:
        """Return the plain text of ids; special symbols except `<unk>` are omitted."""
        return self.join(self.pieces(ids))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the symbols of ids, special ones included."""
        return [self.dictionary.symbols[int(i)] for i in ids]

    def split_lines(self, lines: Sequence[str]) -> list[list[str]]:
        """Return the pieces of each line, unknown ones written out."""
        return [self._split(line) for line in lines]

    def join(self, pieces: Sequence[str]) -> str:
        """Return the plain text of pieces as returned by `split_lines` and `pieces`."""
        text = " ".join(piece for piece in pieces if piece not in _SPECIAL)
        if self._processor is not None:
            text = text.replace(" ", "").replace(SPACE, " ").strip()
        elif self._merges is not None:
            text = f"{text} ".replace(f"{CONTINUES} ", "").rstrip()
        return text if self._moses is None else self._moses.detokenize(text)


def _read_files(
    user_symbols: list[str],
    dictionary: str | Path,
    moses: bool,
    codes: str | Path | None = None,
    sentencepiece: str | Path | None = None,
    added_symbols: Sequence[str] = (),
    source_opening: str | None = None,
    target_opening: str | None = None,
) -> StoredDict:
    stored: StoredDict = {
        "dictionary": _text(dictionary),
        "moses": moses,
        "user_symbols": user_symbols,
    }
    if added_symbols:
        stored["added_symbols"] = list(added_symbols)
    if source_opening is not None:
        stored["source_opening"] = source_opening
    if target_opening is not None:
        stored["target_opening"] = target_opening
    if codes is not None:
        stored["codes"] = _text(codes)
        Merges(stored["codes"].encode(), str(codes))
    if sentencepiece is not None:
        stored["sentencepiece"] = base64.b64encode(read_vocab_file(sentencepiece)).decode()
    return stored


def _dictionary(stored: StoredDict, name: str) -> Dictionary:
    dictionary = Dictionary.parse(stored["dictionary"].encode(), name)
    return dictionary.extended(stored.get("added_symbols", ()))


def _text(path: str | Path) -> str:
    content = read_vocab_file(path)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {number}: invalid UTF-8; convert it to UTF-8") from None
