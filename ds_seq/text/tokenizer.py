"""What the rest of ds_seq may ask of a tokenizer, whoever trained it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


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


class Tokenizer(Protocol):
    """Text <-> ids.

    Attributes:
        symbols: ids that are not text.
        fingerprint: differs between tokenizers that give other ids for the same text.
        tag_ids: ids of symbols that may open a line, such as the language tag ``<2de>``.
    """

    symbols: Symbols
    fingerprint: str
    tag_ids: frozenset[int]

    def __len__(self) -> int:
        """Number of ids."""

    def encode(self, text: str) -> list[int]:
        """The ids of a line, normalized first, without the end symbol."""

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """Like `encode`, for many lines at once."""

    def decode(self, ids: Sequence[int]) -> str:
        """Plain text for ids; symbols other than `Symbols.unk` are left out."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The spelling of each id, symbols included."""

    def split_lines(self, lines: Sequence[str]) -> list[list[str]]:
        """The pieces of each line as the text spells them, unknown ones included."""

    def join(self, pieces: Sequence[str]) -> str:
        """Plain text for pieces such as `split_lines` and `pieces` give."""

    def to_bytes(self) -> bytes:
        """Everything it takes to make this tokenizer again."""
