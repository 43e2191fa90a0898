"""From subword pieces to the words of a line, by counting characters."""

from __future__ import annotations

from collections.abc import Sequence

from ds_seq.text.tokenizer import SPACE, Tokenizer


def piece_words(tokenizer: Tokenizer, line: str, words: Sequence[str]) -> list[int | None]:
    """Return the index of the word that each piece of a normalized line belongs to.

    A piece that is only a space belongs to the following word. An entry is None only if the line
    has no words.

    Args:
        tokenizer: tokenizer of the line.
        line: the line.
        words: its words, which together have all its characters but spaces between them.
    """
    split = tokenizer.split_lines(words)
    owners = [word for word, pieces in enumerate(split) for _ in range(sum(map(num_signs, pieces)))]
    found: list[int | None] = []
    place = 0
    for piece in tokenizer.split_lines([line])[0]:
        found.append(owners[min(place, len(owners) - 1)] if owners else None)
        place += num_signs(piece)
    return found


def num_signs(piece: str) -> int:
    """Return the number of characters of a piece that are not spaces of any kind."""
    return sum(map(len, piece.replace(SPACE, " ").split()))
