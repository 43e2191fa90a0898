"""From pieces to words: whose word a piece belongs to, in the plain text that people see.

A word is what `str.split` makes of a line. Which piece is part of which word is found by counting
characters, not by the marks of SentencePiece: its normalization can change the number of spaces
inside a word.
"""

from __future__ import annotations

from collections.abc import Sequence

from ds_seq.text.tokenizer import SPACE, Tokenizer, Tokenizers


def plain_line(text: str) -> str:
    """A text without line breaks: a vocabulary of bytes can spell them."""
    return " ".join(text.replace("\r", "\n").split("\n")).strip()


def source_words(tokenizer: Tokenizer, line: str) -> list[int | None]:
    """The word of a normalized line, from 0, that each of its ids is part of.

    A piece that is nothing but a space belongs to the word after it. There is None only where a
    line has no word.
    """
    words = tokenizer.split_lines(line.split())
    owners = [word for word, pieces in enumerate(words) for _ in range(sum(map(_signs, pieces)))]
    found: list[int | None] = []
    place = 0
    for piece in tokenizer.split_lines([line])[0]:
        found.append(owners[min(place, len(owners) - 1)] if owners else None)
        place += _signs(piece)
    return found


def target_words(tokenizer: Tokenizer, pieces: Sequence[str]) -> list[int | None]:
    """The word of the joined pieces that each piece ends in; None where it adds no sign."""
    found: list[int | None] = []
    before = 0
    for count in range(1, len(pieces) + 1):
        words = tokenizer.join(pieces[:count]).split()
        signs = sum(map(len, words))
        found.append(len(words) - 1 if signs > before else None)
        before = signs
    return found


def word_pairs(
    alignment: Sequence[int], source: Sequence[int | None], target: Sequence[int | None]
) -> list[tuple[int, int]]:
    """Pairs of words that hold pieces which look at each other, each once, in order.

    Args:
        alignment: place of the source piece of each target piece.
        source: word of each source piece.
        target: word of each target piece.
    """
    pairs = set()
    for place, word in zip(alignment, target, strict=True):
        seen = source[place] if place < len(source) else None
        if word is not None and seen is not None:
            pairs.add((seen, word))
    return sorted(pairs)


def pharaoh(pairs: Sequence[tuple[int, int]]) -> str:
    """Pairs as Pharaoh and Moses write them: ``0-0 1-2``, source first, counted from 0."""
    return " ".join(f"{source}-{target}" for source, target in pairs)


def replace_unknown(
    tokenizers: Tokenizers, tokens: Sequence[int], alignment: Sequence[int], line: str
) -> list[str]:
    """The pieces of a translation, with what it looks at in place of each unknown piece.

    That is the unknown piece of the source, if it looks at one, and else the whole word (Luong et
    al., 2015, "Addressing the Rare Word Problem in Neural Machine Translation",
    https://arxiv.org/abs/1410.8206).

    Args:
        tokenizers: of source and translation.
        tokens: ids of the translation.
        alignment: place of the source piece of each token.
        line: the source, normalized.
    """
    reader, unknown = tokenizers.source, tokenizers.target.symbols.unk
    pieces = tokenizers.target.pieces(tokens)
    if unknown not in tokens:
        return pieces
    (ids,), (spelt,) = reader.encode_lines([line]), reader.split_lines([line])
    words, owners = line.split(), source_words(reader, line)
    for place, (token, seen) in enumerate(zip(tokens, alignment, strict=True)):
        if token != unknown or seen >= len(ids):
            continue
        owner = owners[seen]
        if ids[seen] == reader.symbols.unk:
            pieces[place] = spelt[seen]
        elif owner is not None:
            pieces[place] = words[owner]
    return pieces


def _signs(piece: str) -> int:
    """How many characters of a piece are no space."""
    return len(piece.replace(SPACE, ""))
