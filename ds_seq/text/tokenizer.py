"""What the rest of ds_seq may ask of a tokenizer, whoever trained it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from ds_seq.text.normalize import Normalizer

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""Spells a space in pieces, where a tokenizer spells it at all."""

TokenizerT = TypeVar("TokenizerT", bound="Tokenizer", covariant=True)


@dataclass(frozen=True)
class Symbols:
    """Ids of the symbols that are not text.

    Attributes:
        pad: fills up rows of a batch; never generated.
        eos: ends a sentence.
        unk: stands for text that the tokenizer does not know.
        start: first input of a decoder. fairseq and ds_seq use `eos`; BART, T5 and NLLB differ.
        bos: begins a sentence where a model wants that; None where there is no such symbol. Never
            generated.
    """

    pad: int
    eos: int
    unk: int
    start: int
    bos: int | None = None

    @property
    def never_generated(self) -> frozenset[int]:
        """Ids that no hypothesis may hold: `pad`, `bos`, and `start` unless it is `eos`."""
        ids = {self.pad, self.start, self.bos} - {self.eos, None}
        return frozenset(i for i in ids if i is not None)


class Tokenizer(Protocol):
    """Text <-> ids.

    A tokenizer is pickled when text is encoded in several processes.

    Attributes:
        symbols: ids that are not text.
        fingerprint: differs between tokenizers that give other ids for the same text. How text is
            normalized first is no part of it.
        tag_ids: ids of symbols that may open a line, such as the language tag `<2de>`.
    """

    symbols: Symbols
    fingerprint: str
    tag_ids: frozenset[int]

    def __len__(self) -> int:
        """Return number of ids."""

    def normalize(self, text: str) -> str:
        """Return the text as the tokenizer reads it; normalized text stays as it is."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a line, normalized first, without the end symbol."""

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """Like `encode`, for many lines at once."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return plain text for ids; symbols other than `Symbols.unk` are left out."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the spelling of each id, symbols included; spaces are spelled `SPACE` or not at all."""

    def split_lines(self, lines: Sequence[str]) -> list[list[str]]:
        """Return the pieces of each line as the text spells them, unknown ones included."""

    def join(self, pieces: Sequence[str]) -> str:
        """Return plain text for pieces such as `split_lines` and `pieces` give."""

    def to_bytes(self) -> bytes:
        """Everything it takes to make this tokenizer again, except its normalizer."""


class TokenizerKind(Protocol[TokenizerT]):
    """What the name of a tokenizer stands for: as a rule its class, with two class methods."""

    def train(
        self,
        files: Sequence[Path],
        *,
        size: int,
        user_symbols: Sequence[str],
        normalizer: Normalizer,
        **options: Any,
    ) -> TokenizerT:
        """Learn a tokenizer from text.

        Args:
            files: clean text, one sentence per line, UTF-8; both sides of the training text.
            size: number of ids, special symbols included.
            user_symbols: strings that always are one id.
            normalizer: normalizes text before it is encoded.
            options: what this kind alone knows.

        Raises:
            UserError: the text does not suffice, or an option is wrong.
        """

    def from_bytes(self, content: bytes, *, normalizer: Normalizer, name: str) -> TokenizerT:
        """Make a tokenizer again from its `Tokenizer.to_bytes`.

        Args:
            content: those bytes.
            normalizer: normalizes text before it is encoded.
            name: what to call the content in error messages, normally its path.

        Raises:
            UserError: the content is not one of this kind.
        """


class Tokenizers(NamedTuple):
    """The tokenizers of the two sides; often the same one twice."""

    source: Tokenizer
    target: Tokenizer

    @classmethod
    def shared(cls, tokenizer: Tokenizer) -> Tokenizers:
        """Return one tokenizer for both sides."""
        return cls(tokenizer, tokenizer)

    @property
    def symbols(self) -> Symbols:
        """The symbols of the target, of which `Symbols.pad` counts on both sides.

        Raises:
            ValueError: the source has another padding id; a model knows only one.
        """
        if self.source.symbols.pad != self.target.symbols.pad:
            raise ValueError(
                f"the source is padded with id {self.source.symbols.pad}, the target with "
                f"{self.target.symbols.pad}; both need the same one"
            )
        return self.target.symbols

    @property
    def size(self) -> int:
        """Number of ids of the larger side."""
        return max(len(self.source), len(self.target))

    @property
    def fingerprint(self) -> str:
        """Differs between pairs of which a side differs; of a shared tokenizer it is its own."""
        source, target = self.source.fingerprint, self.target.fingerprint
        if source == target:
            return source
        return hashlib.sha256(f"{source}\n{target}".encode()).hexdigest()
