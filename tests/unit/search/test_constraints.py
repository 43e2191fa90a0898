"""Phrases that must occur against exhaustive search."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from ds_seq.search.constraints import ConstraintOrder, Constraints
from ds_seq.search.prefix import Prefixes
from tests.unit.search.search_checks import (
    VOCAB,
    alike,
    check_batches,
    check_scores,
    distinct,
    draw_sources,
    pad,
)
from tests.unit.search.table_model import EOS, SYMBOLS, TableModel, all_hypotheses
from tests.values import beam_search

ORDERS: list[ConstraintOrder] = ["any", "given"]
Phrases = list[list[int]]


def occurrences(text: list[int], phrase: list[int]) -> int:
    return sum(text[i : i + len(phrase)] == phrase for i in range(len(text)))


def in_order(text: list[int], phrases: Phrases) -> bool:
    if not phrases:
        return True
    first, size = phrases[0], len(phrases[0])
    starts = [i for i in range(len(text)) if text[i : i + size] == first]
    return any(in_order(text[i + size :], phrases[1:]) for i in starts)


def contains(text: list[int], phrases: Phrases, order: ConstraintOrder) -> bool:
    if order == "given":
        return in_order(text, phrases)
    return all(occurrences(text, phrase) >= phrases.count(phrase) for phrase in phrases)


def draw_phrases(count: int, seed: int = 0) -> list[Phrases]:
    draw = random.Random(seed)
    return [
        [draw.choices(range(3, VOCAB), k=draw.randrange(1, 4)) for _ in range(draw.randrange(4))]
        for _ in range(count)
    ]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "phrases",
    [
        [[3, 4]],
        [[5], [3]],
        [[4, 4, 5]],
        [[4, 5], [3, 3]],
        [[5], [5]],
        [[4, 3, 4]],
        [],
    ],
    ids=str,
)
def test_wide_beam_finds_all_that_contain_them(order: ConstraintOrder, phrases: Phrases) -> None:
    model, sources = TableModel(6), [[4, 3, EOS], [5, 4, 4, EOS]]
    for limit in (4, 5):
        search = beam_search(
            SYMBOLS,
            beam=370,
            num_best=370,
            max_len_a=0,
            max_len_b=limit,
            selection=Constraints([[], phrases], order, EOS),
        )
        _, found = search.search(model, *pad(sources))
        everything = all_hypotheses(model, sources[1], 1, limit, 1.0)
        expected = sorted((h for h in everything if contains(h[1], phrases, order)), reverse=True)
        assert [h.tokens for h in found] == [tokens for _, tokens in expected]
        scores = [score for score, _ in expected]
        assert [h.score for h in found] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("beam", "end_bias"), [(1, 0.0), (4, 0.0), (2, -9.0)])
def test_narrow_beams_contain_them_too(order: ConstraintOrder, beam: int, end_bias: float) -> None:
    model, sources = TableModel(VOCAB, seed=1, end_bias=end_bias), draw_sources(40)
    phrases = draw_phrases(40)
    search = beam_search(
        SYMBOLS,
        beam=beam,
        num_best=beam,
        max_len_a=0.5,
        max_len_b=5,
        selection=Constraints(phrases, order, EOS),
    )
    found = search.search(model, *pad(sources))
    plain = beam_search(SYMBOLS, beam=beam, num_best=beam, max_len_a=0.5, max_len_b=5)
    without = plain.search(model, *pad(sources))
    for own, ours, free in zip(phrases, found, without, strict=True):
        assert all(contains(h.tokens, own, order) for h in ours)
        assert own or alike(ours, free)
        assert len(ours) == beam or sum(map(len, own)) > 4  # then there may be no more
    check_scores(model, sources, found, 1.0)
    check_batches(model, sources[:12], search)
    assert distinct(found) > 20 * beam


@pytest.mark.parametrize("order", ORDERS)
def test_limits_give_way_to_the_phrases(order: ConstraintOrder) -> None:
    phrases = [[4, 5, 4], [6, 7], [8]]
    search = beam_search(
        SYMBOLS, beam=2, max_len_a=0, max_len_b=2, selection=Constraints([phrases], order, EOS)
    )
    ((best,),) = search.search(TableModel(VOCAB, seed=2), *pad([[5, EOS]]))
    assert len(best.tokens) == 6
    assert contains(best.tokens, phrases, order)


def test_phrases_may_overlap_in_any_order() -> None:
    model, phrases = TableModel(6, end_bias=2.0), [[3, 4], [4, 5], [3, 4, 5]]
    search = beam_search(
        SYMBOLS,
        beam=300,
        num_best=300,
        max_len_a=0,
        max_len_b=7,
        selection=Constraints([phrases], "any", EOS),
    )
    (found,) = search.search(model, *pad([[4, EOS]]))
    assert all(contains(h.tokens, phrases, "any") for h in found)
    assert min(len(h.tokens) for h in found) == 3


def test_candidates_are_the_best_ones_and_the_words_of_the_phrases() -> None:
    phrases: list[Phrases] = [[[4, 5], [6]], [], [[8, 8]]]
    limits = torch.tensor([5, 5, 5])
    selection = Constraints(phrases, "any", EOS).start(range(3), 2, limits)
    log_probs = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(0))
    scores, tokens = selection.propose(log_probs, 3)
    for row in range(6):
        found = {t: s for s, t in zip(scores[row].tolist(), tokens[row].tolist(), strict=True)
                 if s > -9}  # fmt: skip
        assert len(found) == int(scores[row].isfinite().sum())  # none twice
        words = {word for phrase in phrases[row // 2] for word in phrase}
        assert set(found) == words | set(log_probs[row].topk(3)[1].tolist())
        assert list(found.values()) == pytest.approx(log_probs[row, list(found)].tolist())
        assert scores[row, 0] == log_probs[row].max()


def test_the_numbers_of_missing_tokens_take_turns() -> None:
    """The order is that of the definition, worked out in plain Python."""
    phrases = [[4, 5], [6]]
    selection = Constraints([phrases], "any", EOS).start([0], 2, torch.tensor([9]))
    selection.follow(torch.tensor([0, 1]), torch.tensor([4, 7]))  # the first has begun a phrase
    tokens = torch.tensor([[[3, 4, 5, 6, 7], [8, 4, 5, 6, 7]]])
    totals = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(2))
    totals[0, 1, 2] = -float("inf")
    missing = {0: {3: 3, 4: 2, 5: 1, 6: 2, 7: 3}, 1: {8: 3, 4: 2, 5: 3, 6: 2, 7: 3}}
    banks: dict[int, list[tuple[float, int, int]]] = {1: [], 2: [], 3: []}
    for origin in (0, 1):
        pairs = zip(totals[0, origin].tolist(), tokens[0, origin].tolist(), strict=True)
        for total, token in pairs:
            if total > -9:
                banks[missing[origin][token]].append((total, origin, token))
    ranked = [sorted(banks[number], reverse=True) for number in (1, 2, 3)]
    turns = itertools.zip_longest(*ranked)
    expected = [candidate for turn in turns for candidate in turn if candidate is not None]
    choice = selection.rank(totals, tokens)
    rows = zip(choice.origins[0].tolist(), choice.tokens[0].tolist(), strict=True)
    assert list(rows) == [(origin, token) for _, origin, token in expected[:4]]
    assert choice.totals[0].tolist() == pytest.approx([total for total, _, _ in expected[:4]])


def test_a_prefix_goes_together_with_phrases() -> None:
    model, phrases = TableModel(VOCAB), [[4, 5], [7]]
    search = beam_search(
        SYMBOLS,
        beam=4,
        max_len_a=0,
        max_len_b=1,
        guides=(Prefixes([[8, 4]]),),
        selection=Constraints([phrases], "given", EOS),
    )
    ((best,),) = search.search(model, *pad([[5, EOS]]))
    assert best.tokens[:2] == [8, 4]
    assert contains(best.tokens, phrases, "given")
    assert len(best.tokens) <= 5


def test_where_it_is_impossible_the_score_says_so() -> None:
    search = beam_search(
        SYMBOLS, beam=3, no_repeat_ngram=1, selection=Constraints([[[4], [4]], [[5]]], "any", EOS)
    )
    (first,), (second,) = search.search(TableModel(VOCAB), *pad([[5, EOS], [6, 4, EOS]]))
    assert first.score == float("-inf")
    assert not first.tokens
    assert 5 in second.tokens
