"""Drawn subwords: the distribution of the model, the same text, the same for the same seed."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ds_seq.errors import UserError
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.subword_draws import SubwordDraws
from tests.data.toy import write_toy
from tests.fresh import words_printed_by

LINES = [
    "my sister finds twenty-four old books today",
    "the doctor sells ",
    "",
    "§ unknown ¶ signs",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("draws")
    write_toy(folder, 300, 5)
    for kind in ("unigram", "bpe"):
        _train(folder, kind).save(folder / f"{kind}.model")
    return folder


def _train(folder: Path, kind: str) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train(
        [folder / "train.en", folder / "train.de"],
        size=130,
        user_symbols=["<2de>"],
        model_type=kind,
        character_coverage=1.0,
        input_sentence_size=0,
        normalization="identity",
    )


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_text_stays_and_the_limit_is_the_usual_encoding(folder: Path, kind: str) -> None:
    tokenizer = SentencePieceTokenizer.load(folder / f"{kind}.model")
    text = (folder / "train.en").read_text().splitlines()[:100]
    draws = SubwordDraws(tokenizer, 0.3)
    found = [draws(line, random.Random(n)) for n, line in enumerate(text)]
    assert [tokenizer.decode(ids) for ids in found] == text
    assert sum(ids != tokenizer.encode(line) for ids, line in zip(found, text, strict=True)) > 80
    limit = SubwordDraws(tokenizer, 0.0 if kind == "bpe" else 200.0)
    for line in [*text, *LINES, "<2de> a child"]:
        assert limit(line, random.Random(1)) == tokenizer.encode(line)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_another_process_draws_the_same(folder: Path, kind: str) -> None:
    code = (
        "import random\n"
        "from ds_seq.text.sentencepiece import SentencePieceTokenizer as S\n"
        "from ds_seq.text.subword_draws import SubwordDraws\n"
        f"d = SubwordDraws(S.load({str(folder / f'{kind}.model')!r}), 0.2)\n"
        f"print(*d({LINES[0]!r}, random.Random(7)))"
    )
    draws = SubwordDraws(SentencePieceTokenizer.load(folder / f"{kind}.model"), 0.2)
    for line in LINES * 2:  # what is kept for a word changes nothing
        draws(line, random.Random(3))
    assert words_printed_by(code) == [str(i) for i in draws(LINES[0], random.Random(7))]


def test_a_unigram_model_draws_by_its_probabilities(folder: Path) -> None:
    """P ** alpha over all segmentations of a word, counted here one by one."""
    tokenizer = SentencePieceTokenizer.load(folder / "unigram.model")
    scores = {p: s for p, (_, s) in SubwordDraws(tokenizer, 1.0)._pieces.items()}
    alpha = 0.3

    def all_of(rest: str) -> list[list[str]]:
        heads = [rest[:n] for n in range(1, len(rest) + 1) if rest[:n] in scores]
        return [[head, *tail] for head in heads for tail in all_of(rest[len(head) :])] or (
            [[]] if not rest else []
        )

    words = {word for line in LINES[:2] for word in line.split()}
    word = max(words, key=lambda word: len(all_of(f"▁{word}")))
    every = all_of(f"▁{word}")
    weights = {tuple(s): math.exp(alpha * sum(scores[p] for p in s)) for s in every}
    total = sum(weights.values())
    draws, generator = SubwordDraws(tokenizer, alpha), random.Random(5)
    count = 4000
    found = Counter(tuple(tokenizer.pieces(draws(word, generator))) for _ in range(count))
    assert set(found) <= set(weights) and len(weights) > 5
    for pieces, weight in weights.items():
        expected = count * weight / total
        assert abs(found[pieces] - expected) < 5 * math.sqrt(expected) + 5


def test_all_merges_left_out_are_characters(folder: Path) -> None:
    tokenizer = SentencePieceTokenizer.load(folder / "bpe.model")
    ids = SubwordDraws(tokenizer, 1.0)("old books", random.Random(1))
    assert tokenizer.pieces(ids) == list("▁old▁books")


def test_only_sentencepiece_draws_subwords() -> None:
    tokenizer: Any = object()
    with pytest.raises(UserError, match="only SentencePiece"):
        SubwordDraws(tokenizer, 0.1)
