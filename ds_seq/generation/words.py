"""From subword pieces to words: which word of the plain text each piece belongs to.

Words are the result of `str.split` on a line. Pieces are assigned to words by counting characters,
not by the word boundary marks of SentencePiece, whose normalization can change the number of spaces
inside a word.
"""

from __future__ import annotations

from collections.abc import Sequence

from ds_seq.text.tokenizer import Tokenizer, Tokenizers
from ds_seq.text.words import piece_words


def plain_line(text: str) -> str:
    """Remove line breaks from a text, which a byte-level vocabulary can generate."""
    return " ".join(text.replace("\r", "\n").split("\n")).strip(" ")


def source_words(tokenizer: Tokenizer, line: str) -> list[int | None]:
    """Return the index of the word that each piece of a normalized line belongs to.

    A piece that is only a space belongs to the following word. An entry is None only if the line
    has no words.
    """
    return piece_words(tokenizer, line, line.split())


def target_words(tokenizer: Tokenizer, pieces: Sequence[str]) -> list[int | None]:
    """Return the index of the word in which each piece ends; None if it adds no character."""
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
    """Convert an alignment of pieces to sorted, unique pairs of source and target words.

    Args:
        alignment: index of the source piece of each target piece.
        source: word of each source piece.
        target: word of each target piece.
    """
    pairs = set()
    for place, word in zip(alignment, target, strict=True):
        source_word = source[place] if place < len(source) else None
        if word is not None and source_word is not None:
            pairs.add((source_word, word))
    return sorted(pairs)


def pharaoh(pairs: Sequence[tuple[int, int]]) -> str:
    """Format pairs as Pharaoh and Moses do: `0-0 1-2`, source first, counted from 0."""
    return " ".join(f"{source}-{target}" for source, target in pairs)


def replace_unknown(
    tokenizers: Tokenizers, tokens: Sequence[int], alignment: Sequence[int], line: str
) -> list[str]:
    """Return the pieces of a translation with each unknown piece replaced by its aligned source.

    The replacement is the aligned source piece if that is unknown too, and else the whole source
    word (Luong et al., 2015, "Addressing the Rare Word Problem in Neural Machine Translation",
    https://arxiv.org/abs/1410.8206).

    Args:
        tokenizers: tokenizers of source and target.
        tokens: ids of the translation.
        alignment: index of the source piece of each token.
        line: normalized source line.
    """
    reader, unknown = tokenizers.source, tokenizers.target.symbols.unk
    pieces = tokenizers.target.pieces(tokens)
    if unknown not in tokens:
        return pieces
    (ids,), (spelt,) = reader.encode_lines([line]), reader.split_lines([line])
    words, owners = line.split(), source_words(reader, line)
    for place, (token, source) in enumerate(zip(tokens, alignment, strict=True)):
        if token != unknown or source >= len(ids):
            continue
        owner = owners[source]
        if ids[source] == reader.symbols.unk:
            pieces[place] = spelt[source]
        elif owner is not None:
            pieces[place] = words[owner]
    return pieces
