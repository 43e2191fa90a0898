"""From pieces to words, with a real vocabulary; and what takes the place of unknown pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_seq.generation.words import (
    pharaoh,
    replace_unknown,
    source_words,
    target_words,
    word_pairs,
)
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab

# the rule nmt_nfkc makes a space inside the word with a separate accent, and none of the two
# hearts; the identity keeps the no-break space
HARD = "We see\u2665\u2665 the \u263a, now\u00a0it\u00b4s (\u263a) 7 \u2665"

TAGS = "a" + " <2de>" * 3 + " b c"


@pytest.fixture(scope="module", params=["identity", "nmt_nfkc"])
def vocab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> SentencePieceTokenizer:
    folder = tmp_path_factory.mktemp("words")
    write_toy(folder, 200, 10)
    sides = [folder / "train.en", folder / "train.de"]
    symbols = ["<2de>"]
    return train_vocab(
        sides, Path(folder / "m"), 130, user_symbols=symbols, normalization=request.param
    )


@pytest.mark.parametrize("line", ["Hello", HARD, "<2de> We see", "a <2de> b", "", "\u263a"])
def test_split_lines_spells_what_encode_counts(vocab: SentencePieceTokenizer, line: str) -> None:
    (ids,), (pieces,) = vocab.encode_lines([line]), vocab.split_lines([line])
    assert len(ids) == len(pieces)
    for token, known, spelt in zip(ids, vocab.pieces(ids), pieces, strict=True):
        assert (known == spelt) == (token != vocab.symbols.unk)
    assert vocab.join(vocab.pieces(ids)) == vocab.decode(ids)


@pytest.mark.parametrize("line", ["Hello", HARD, "<2de> We see", TAGS, "x " * 30])
def test_words_of_a_source_hold_their_pieces(vocab: SentencePieceTokenizer, line: str) -> None:
    words = line.split()
    (pieces,) = vocab.split_lines([line])
    owners = source_words(vocab, line)
    assert owners == sorted(owners, key=lambda word: -1 if word is None else word)
    for number, word in enumerate(words):
        own = [p for p, owner in zip(pieces, owners, strict=True) if owner == number]
        # what is spelt by the pieces of a word is what the word alone is spelt by
        alone = "".join(vocab.split_lines([word])[0])
        assert "".join("".join(own).replace("\u2581", " ").split()) == alone.replace("\u2581", "")


def test_a_line_without_words_has_none(vocab: SentencePieceTokenizer) -> None:
    assert source_words(vocab, "") == []
    assert set(source_words(vocab, "  ")) <= {None}


@pytest.mark.parametrize("line", ["Hello", HARD, "a <2de> b", "\u263a\u263a x \u263a"])
def test_words_of_a_target_are_those_of_its_text(vocab: SentencePieceTokenizer, line: str) -> None:
    ids = vocab.encode(line)
    for pieces in (vocab.pieces(ids), vocab.split_lines([line])[0]):
        text = vocab.join(pieces)
        owners = target_words(vocab, pieces)
        spelt = [""] * len(text.split())
        for piece, owner in zip(pieces, owners, strict=True):
            if owner is not None:
                spelt[owner] += "\u2047" if piece == "<unk>" else piece.replace("\u2581", "")
        assert spelt == text.split()
    assert target_words(vocab, ["\u2581", "\u2581x", "\u2581"]) == [None, 0, None]


def test_pairs_come_once_and_in_order() -> None:
    source: list[int | None] = [0, 0, None, *range(1, 12)]
    places = [3, 0, 0, 1, 2, 99, *range(13, 3, -1)]
    pairs = word_pairs(places, source, [0, 1, 1, None, *range(2, 14)])
    assert pairs == [(0, 1), (1, 0), *((word, 15 - word) for word in range(2, 12))]
    assert pharaoh(pairs[:3]) == "0-1 1-0 2-13"
    assert pharaoh([]) == ""


def unknown_at(vocab: SentencePieceTokenizer, source: str, seen: str) -> list[int]:
    """An alignment of `known unknown known` whose unknown piece looks at the piece ``seen``."""
    (pieces,) = vocab.split_lines([source])
    return [0, pieces.index(seen), 0]


def test_an_unknown_piece_is_replaced_by_what_it_looks_at(vocab: SentencePieceTokenizer) -> None:
    (known,) = vocab.encode("a")[-1:]
    mark = vocab.encode("\u263a")[0]  # the piece of a lone space
    assert vocab.pieces([mark]) == ["\u2581"]
    tokens = [known, vocab.symbols.unk, known]
    source = "We see \u263aa now"
    # an unknown piece is copied alone, without the letter after it
    pieces = replace_unknown(
        Tokenizers.shared(vocab), tokens, unknown_at(vocab, source, "\u263a"), source
    )
    assert pieces == [*vocab.pieces([known]), "\u263a", *vocab.pieces([known])]
    # of a known piece, the whole word
    (spelt,) = vocab.split_lines([source])
    last = len(spelt) - 1
    assert replace_unknown(Tokenizers.shared(vocab), tokens, [0, last, 0], source)[1] == "now"
    text = vocab.join(
        replace_unknown(
            Tokenizers.shared(vocab), [known, mark, *tokens[1:]], [0, 0, last, 0], source
        )
    )
    assert text.split() == [vocab.decode([known]), "now" + vocab.decode([known])]
    # the end of the sentence has no word; neither is there anything to replace here
    assert (
        replace_unknown(Tokenizers.shared(vocab), tokens, [0, len(spelt), 0], source)[1] == "<unk>"
    )
    assert replace_unknown(
        Tokenizers.shared(vocab), [known] * 3, [0, last, 0], source
    ) == vocab.pieces([known] * 3)
