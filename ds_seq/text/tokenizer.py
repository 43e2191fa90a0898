"""The interface of tokenizers to the rest of ds_seq."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from ds_seq.text.normalize import Normalizer

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""Marks a space in pieces, for tokenizers that mark spaces."""

TokenizerT = TypeVar("TokenizerT", bound="Tokenizer", covariant=True)


@dataclass(frozen=True)
class Symbols:
    """Ids of the special symbols.

    Attributes:
        pad: padding of the rows of a batch; never generated.
        eos: end of a sentence.
        unk: text unknown to the tokenizer.
        start: first input of the decoder. fairseq and ds_seq use `eos`; BART, T5 and NLLB differ.
        bos: start of a sentence, for models that need it; None if there is no such symbol. Never
            generated.
        opening: ids in front of every sentence, which a search forces, such as the `<s>` of BART or
            the language of NLLB. Like `eos`, no part of what a tokenizer encodes.
        closing: ids after the `eos` of every source, such as the language of mBART's first models.
    """

    pad: int
    eos: int
    unk: int
    start: int
    bos: int | None = None
    opening: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()

    def framed(self, ids: Sequence[int]) -> list[int]:
        """Return the ids of a sentence with `opening`, `eos` and `closing`, as models see it."""
        return [*self.opening, *ids, self.eos, *self.closing]

    def unframed(self, ids: Sequence[int]) -> list[int]:
        """Return the ids of a sentence without what `framed` puts around them."""
        return list(ids[len(self.opening) : len(ids) - 1 - len(self.closing)])

    @property
    def never_generated(self) -> frozenset[int]:
        """Ids that no hypothesis may contain: `pad`, `bos`, `start`; except `eos` and `opening`."""
        ids = {self.pad, self.start, self.bos} - {self.eos, None, *self.opening}
        return frozenset(i for i in ids if i is not None)


class Tokenizer(Protocol):
    """Conversion between text and ids.

    A tokenizer is pickled when text is encoded in several processes.

    Attributes:
        symbols: ids of the special symbols.
        fingerprint: differs between tokenizers that encode the same text differently. It does not
            cover the normalization of the text.
        tag_ids: ids of symbols that may start a line, such as the language tag `<2de>`.
    """

    symbols: Symbols
    fingerprint: str
    tag_ids: frozenset[int]

    def __len__(self) -> int:
        """Return the number of ids."""

    def normalize(self, text: str) -> str:
        """Return the text as the tokenizer reads it; normalized text is unchanged."""

    def encode(self, text: str) -> list[int]:
        """Normalize a line and return its ids, without the end symbol."""

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """Encode many lines; see `encode`."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the plain text of ids; symbols other than `Symbols.unk` are omitted."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the piece of each id, symbols included; spaces are `SPACE` or omitted."""

    def split_lines(self, lines: Sequence[str]) -> list[list[str]]:
        """Return the pieces of each line, spelled as in the text, unknown ones included."""

    def join(self, pieces: Sequence[str]) -> str:
        """Return the plain text of pieces as returned by `split_lines` and `pieces`."""

    def to_bytes(self) -> bytes:
        """Return the bytes from which this tokenizer can be restored, except its normalizer."""


@runtime_checkable
class SidedTokenizer(Protocol):
    """A tokenizer whose text or symbols depend on the side and its language."""

    def for_side(self, language: str, is_source: bool) -> Tokenizer:
        """Return the tokenizer of a side.

        Args:
            language: language code of the experiment.
            is_source: whether the side is the source.

        Raises:
            UserError: the language is unknown.
        """


@runtime_checkable
class MarkedTokenizer(Protocol):
    """A tokenizer with symbols of its own that no text contains, such as those of languages.

    Attributes:
        special_ids: their ids, and those of `symbols` except `Symbols.unk`.
    """

    special_ids: frozenset[int]


def ordinary_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that stand for text, without those of symbols."""
    symbols = tokenizer.symbols
    special = {symbols.pad, symbols.eos, symbols.unk, symbols.start, *tokenizer.tag_ids}
    if isinstance(tokenizer, MarkedTokenizer):
        special |= tokenizer.special_ids
    return [i for i in range(len(tokenizer)) if i not in special and i != symbols.bos]


class TokenizerKind(Protocol[TokenizerT]):
    """The object that a tokenizer's name refers to: normally a class with two class methods."""

    def train(
        self,
        files: Sequence[Path],
        *,
        size: int,
        user_symbols: Sequence[str],
        normalizer: Normalizer,
        **options: Any,
    ) -> TokenizerT:
        """Train a tokenizer on text.

        Args:
            files: clean UTF-8 text, one sentence per line; both sides of the training text.
            size: number of ids, special symbols included.
            user_symbols: strings that are always a single id.
            normalizer: applied to text before it is encoded.
            options: options specific to this kind of tokenizer.

        Raises:
            UserError: the text is too small, or an option is invalid.
        """

    def from_bytes(self, content: bytes, *, normalizer: Normalizer, name: str) -> TokenizerT:
        """Restore a tokenizer from the bytes of `Tokenizer.to_bytes`.

        Args:
            content: bytes of the tokenizer.
            normalizer: applied to text before it is encoded.
            name: name of the content in error messages, normally its path.

        Raises:
            UserError: the content does not belong to this kind of tokenizer.
        """


class VocabSizes(NamedTuple):
    """Number of ids of each side."""

    source: int
    target: int


class Tokenizers(NamedTuple):
    """The tokenizers of the source and target sides; often the same object."""

    source: Tokenizer
    target: Tokenizer

    @classmethod
    def shared(cls, tokenizer: Tokenizer) -> Tokenizers:
        """Use one tokenizer for both sides."""
        return cls(tokenizer, tokenizer)

    @property
    def symbols(self) -> Symbols:
        """The symbols of the target side; both sides must have the same `Symbols.pad`.

        Raises:
            ValueError: the sides differ in their padding id.
        """
        if self.source.symbols.pad != self.target.symbols.pad:
            raise ValueError(
                f"the source is padded with id {self.source.symbols.pad}, the target with "
                f"{self.target.symbols.pad}; both need the same id"
            )
        return self.target.symbols

    @property
    def size(self) -> int:
        """Number of ids of the larger side."""
        return max(len(self.source), len(self.target))

    @property
    def sizes(self) -> VocabSizes:
        """Number of ids of each side, which are those of its embeddings."""
        return VocabSizes(len(self.source), len(self.target))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the pair; equal to that of the tokenizer if both sides share it."""
        return joint_fingerprint(self.source.fingerprint, self.target.fingerprint)


def joint_fingerprint(source: str, target: str) -> str:
    """Return the fingerprint of a pair of tokenizers with these fingerprints."""
    if source == target:
        return source
    return hashlib.sha256(f"{source}\n{target}".encode()).hexdigest()


def piece_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the id of each piece of a vocabulary."""
    return {piece: number for number, piece in enumerate(tokenizer.pieces(range(len(tokenizer))))}
