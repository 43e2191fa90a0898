"""What noise has to know about a vocabulary: its mask, its words and its ends of sentences."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.noise.text import NoiseVocab
from ds_seq.errors import UserError
from ds_seq.names import MASK_PIECE, SENTINEL_PIECE
from ds_seq.text.tokenizer import SPACE, Tokenizer, ordinary_ids, piece_ids

_WORD_STARTS = (SPACE, "\u0120")  # of SentencePiece, and of byte-level BPE


def noise_vocab(
    tokenizer: Tokenizer, whole_words: bool, sentence_ends: Collection[str]
) -> NoiseVocab:
    """Return what noise has to know about a vocabulary.

    Args:
        tokenizer: the vocabulary.
        whole_words: whether words are units; otherwise, each token is a word.
        sentence_ends: pieces that end sentences, without the mark of a space.

    Raises:
        UserError: the vocabulary has no mask, or it does not show where words begin.
    """
    pieces = tokenizer.pieces(range(len(tokenizer)))
    if MASK_PIECE not in pieces:
        raise UserError(
            f"task: the vocabulary has no symbol {MASK_PIECE}; set data.vocab.mask to true and run "
            "`ds-seq prepare` again (remove vocab.model first if it was copied)"
        )
    ordinary = np.asarray(ordinary_ids(tokenizer), np.int64)
    starts = np.ones(len(pieces), bool)
    if whole_words:
        starts[ordinary] = [pieces[i].startswith(_WORD_STARTS) for i in ordinary]
        if not starts[ordinary].any():
            raise UserError(
                "task: whole_words is true, but the pieces of the vocabulary do not show where "
                "words begin; set it to false"
            )
    ends = np.isin([piece.lstrip("".join(_WORD_STARTS)) for piece in pieces], list(sentence_ends))
    ends[tokenizer.symbols.eos] = True  # between the lines of a block
    return NoiseVocab(pieces.index(MASK_PIECE), ordinary, starts, ends)


def sentinel_ids(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return the ids of T5's symbols for spans, by their numbers.

    Raises:
        UserError: the vocabulary has none.
    """
    ids = piece_ids(tokenizer)
    found: list[int] = []
    while (name := SENTINEL_PIECE.format(len(found))) in ids:
        found.append(ids[name])
    if not found:
        raise UserError(
            f"task: the vocabulary has no symbol {name}; set data.vocab.sentinels, such as to 100, "
            "and run `ds-seq prepare` again (remove vocab.model first if it was copied)"
        )
    return np.asarray(found, np.int64)
