"""Symbols that stand for the experts of a mixture and start the decoder."""

from __future__ import annotations

from collections.abc import Sequence

from ds_seq.errors import UserError
from ds_seq.text.tokenizer import Tokenizer, piece_ids


def expert_ids(tokenizer: Tokenizer, symbols: Sequence[str]) -> list[int]:
    """Return the ids of the experts of `criterion.experts`.

    Args:
        tokenizer: tokenizer of the target.
        symbols: symbol of each expert.

    Raises:
        UserError: a symbol is not in the vocabulary.
    """
    ids = piece_ids(tokenizer)
    for symbol in symbols:
        if symbol not in ids:
            raise UserError(
                f"criterion.experts: {symbol!r} is no symbol of the target vocabulary; add it to "
                "data.vocab.user_symbols and prepare the data again"
            )
    return [ids[symbol] for symbol in symbols]
