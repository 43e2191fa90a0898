"""IBM model 1 against a loop, and on text whose dictionary is known."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable

import pytest

from ds_seq.data.lexicon import Lexicon, learn_lexicon
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.system.outside import MemorySource

EOS = 2
Pairs = list[tuple[list[int], list[int]]]


def source_of(pairs: Pairs, vocab: SentencePieceTokenizer) -> MemorySource:
    return MemorySource(([s for s, _ in pairs], [t for _, t in pairs]), vocab)


Learn = Callable[[Pairs, int, int], Lexicon]


@pytest.fixture
def learned(vocab: SentencePieceTokenizer) -> Learn:
    return lambda pairs, targets, iterations: learn_lexicon(
        source_of(pairs, vocab), (40, 40), targets, 3, 10**6, iterations
    )


def by_loop(pairs: Pairs, iterations: int) -> dict[int, dict[int, float]]:
    """Return the probability of each target token by source token."""
    table: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(lambda: 1.0))
    for _ in range(iterations):
        counts: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for words, targets in pairs:
            for target in targets:
                total = sum(table[word][target] for word in words)
                for word in words:
                    counts[word][target] += table[word][target] / total
        table = defaultdict(dict)
        for word, row in counts.items():
            table[word] = {target: n / sum(row.values()) for target, n in row.items()}
    return table


def some_pairs(count: int) -> Pairs:
    """Return pairs in which word n is translated to 40 - n, in another order."""
    draw = random.Random(0)
    pairs = []
    for _ in range(count):
        words = [draw.randrange(10, 30) for _ in range(draw.randrange(1, 8))]
        targets = draw.sample([40 - word for word in words], len(words))
        pairs.append(([*words, EOS], [*targets, EOS]))
    return pairs


def test_it_is_model_1(learned: Learn) -> None:
    pairs, size = some_pairs(12), 40
    lexicon, table = learned(pairs, size, 3), by_loop(pairs, 3)
    assert len(table) > 10
    for word in range(size):
        targets = [int(target) for target in lexicon.targets[word] if target >= 0]
        assert sorted(targets) == sorted(table.get(word, ()))
        probabilities = [table[word][target] for target in targets]
        assert all(a >= b - 1e-12 for a, b in zip(probabilities, probabilities[1:], strict=False))


def test_it_finds_the_dictionary_and_the_frequent_tokens(learned: Learn) -> None:
    pairs = some_pairs(300)
    lexicon = learned(pairs, 1, 5)
    assert lexicon.targets.shape == (40, 1)
    assert [int(lexicon.targets[word, 0]) for word in range(10, 30)] == [*range(30, 10, -1)]
    assert int(lexicon.targets[EOS, 0]) == EOS and int(lexicon.targets[5, 0]) == -1
    tokens = [token for _, targets in pairs for token in targets]
    counts = [tokens.count(int(token)) for token in lexicon.frequent]
    assert lexicon.frequent[0] == EOS and counts == sorted(counts, reverse=True)
    assert min(counts) >= max(tokens.count(t) for t in {*tokens} - {*map(int, lexicon.frequent)})


def test_long_sentences_and_a_part_of_the_pairs_are_left_out(
    learned: Learn, vocab: SentencePieceTokenizer
) -> None:
    pairs = some_pairs(20)
    long = ([*[35] * 100, EOS], [36, EOS])
    lexicon = learned([*pairs, long], 2, 2)
    assert (lexicon.targets[35] == -1).all()
    few = learn_lexicon(source_of(pairs, vocab), (40, 40), 2, 3, 5, 2)
    assert (few.targets >= 0).sum() < (lexicon.targets >= 0).sum()
