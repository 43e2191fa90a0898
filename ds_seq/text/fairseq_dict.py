"""fairseq's dictionaries: files of `symbol count` lines, whose order gives the ids.

The ids 0 to 3 belong to `<s>`, `<pad>`, `</s>` and `<unk>`, which are not in the file. fairseq
fills a dictionary up to a multiple of 8 with `madeupword0000`, `madeupword0001`, ..., which no text
has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ds_seq.errors import UserError
from ds_seq.names import SPECIAL_PIECES
from ds_seq.text.tokenizer import Symbols, Tokenizer, piece_ids

FAIRSEQ_SYMBOLS = Symbols(pad=1, eos=2, unk=3, start=2, bos=0)
"""Ids of the special symbols in every dictionary of fairseq."""

_OVERWRITE = "#fairseq:overwrite"
_MADE_UP = re.compile(r"madeupword\d{4,}")
_MOST_NAMED = 5


@dataclass(frozen=True)
class Dictionary:
    """A dictionary of fairseq.

    Attributes:
        symbols: all symbols by id, special ones included.
        ids: id of each symbol; of a symbol that is listed twice, the last one.
    """

    symbols: tuple[str, ...]
    ids: dict[str, int]

    @classmethod
    def parse(cls, content: bytes, name: str) -> Dictionary:
        """Read the content of a `dict.txt`.

        Args:
            content: bytes of the file.
            name: name of the file in error messages.

        Raises:
            UserError: a line is not UTF-8, is not a symbol and its count, or repeats a symbol
                without the mark that allows it.
        """
        symbols = list(SPECIAL_PIECES)
        ids = {symbol: number for number, symbol in enumerate(symbols)}
        for number, line in _lines(content, name):
            symbol, may_repeat = _symbol(line, f"{name}: line {number}")
            if symbol in ids and not may_repeat:
                raise UserError(
                    f"{name}: line {number}: {symbol!r} is in the dictionary already; remove one "
                    f"of the two lines, or end this one with {_OVERWRITE} to replace the other"
                )
            ids[symbol] = len(symbols)
            symbols.append(symbol)
        return cls(tuple(symbols), ids)

    def extended(self, symbols: Sequence[str]) -> Dictionary:
        """Return the dictionary with more symbols at the end, except those that it has already."""
        new = [symbol for symbol in dict.fromkeys(symbols) if symbol not in self.ids]
        if not new:
            return self
        numbers = {symbol: len(self.symbols) + place for place, symbol in enumerate(new)}
        return Dictionary((*self.symbols, *new), {**self.ids, **numbers})

    def __len__(self) -> int:
        return len(self.symbols)


def _lines(content: bytes, name: str) -> Iterator[tuple[int, str]]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name}: line {number}: invalid UTF-8; convert it to UTF-8") from None
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        yield number, line.rstrip()


def _symbol(line: str, where: str) -> tuple[str, bool]:
    """Return the symbol of a line, and whether it may repeat an earlier one."""
    symbol, _, count = line.rpartition(" ")
    may_repeat = count == _OVERWRITE
    if may_repeat:
        symbol, _, count = symbol.rpartition(" ")
    if not re.fullmatch(r"[+-]?\d+", count) or not symbol:
        raise UserError(
            f"{where}: {line[:60]!r} is not a symbol, a space and its count; give a dict.txt that "
            "fairseq-preprocess wrote"
        )
    return symbol, may_repeat


def dictionary_bytes(symbols: Sequence[str], counts: Sequence[int], name: str) -> bytes:
    """Return the content of a `dict.txt`.

    Args:
        symbols: symbols from id 4 on.
        counts: how often each occurs, which fairseq only shows.
        name: what error messages call the vocabulary of the symbols.

    Raises:
        UserError: fairseq could not read a symbol back: it is empty, has a space or a line break,
            or is there twice.
    """
    known = set(SPECIAL_PIECES)
    for symbol in symbols:
        odd = not symbol or set(symbol) & set(" \n\r") or symbol != symbol.strip("\t\v\f")
        if odd or symbol in known or symbol == _OVERWRITE:
            why = "is there twice" if symbol in known else "cannot stand in a dict.txt"
            raise UserError(f"{name}: the symbol {symbol!r} {why}, so fairseq cannot read it")
        known.add(symbol)
    pairs = zip(symbols, counts, strict=True)
    return "".join(f"{symbol} {count}\n" for symbol, count in pairs).encode()


def symbol_ids(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return the id of a tokenizer for each id of the dictionary that is written for it, (V,).

    Special symbols have their places in fairseq, and -1 if the tokenizer has none such; the others
    follow in the order of their ids.
    """
    own = tokenizer.symbols
    special = [-1 if own.bos is None else own.bos, own.pad, own.eos, own.unk]
    rest = np.setdiff1d(np.arange(len(tokenizer)), special)
    return np.concatenate([special, rest])


def id_map(dictionary: Dictionary, tokenizer: Tokenizer, name: str) -> NDArray[np.int64] | None:
    """Return the id of a tokenizer for each id of a dictionary, (V,); -1 where there is none.

    Special symbols are those with the same meaning, whatever their ids and spelling. Made-up words
    need no counterpart, because no text has them.

    Args:
        dictionary: the dictionary.
        tokenizer: tokenizer of the run.
        name: name of the dictionary in error messages.

    Returns:
        The map, or None if every id stays as it is.

    Raises:
        UserError: symbols of the dictionary are not in the vocabulary.
    """
    own = tokenizer.symbols
    pieces = piece_ids(tokenizer)
    special = [-1 if own.bos is None else own.bos, own.pad, own.eos, own.unk]
    rest = [pieces.get(symbol, -1) for symbol in dictionary.symbols[len(special) :]]
    table = np.array(special + rest, np.int64)
    lacking = [
        symbol
        for symbol, number in zip(dictionary.symbols[len(special) :], rest, strict=True)
        if number < 0 and not _MADE_UP.fullmatch(symbol)
    ]
    if lacking:
        shown = ", ".join(repr(symbol) for symbol in lacking[:_MOST_NAMED])
        more = ", ..." if len(lacking) > _MOST_NAMED else ""
        raise UserError(
            f"{name}: {len(lacking):,} of {len(dictionary):,} symbols ({shown}{more}) are not in "
            f"the vocabulary of {len(tokenizer):,} subwords; use the vocabulary with which the "
            "text was split, or data.vocab.name=fairseq_dict with this dictionary"
        )
    return None if (table == np.arange(len(table))).all() else table
