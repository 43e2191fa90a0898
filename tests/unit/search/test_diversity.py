"""Diverse beam searches against their definitions, one sentence and hypothesis at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from ds_seq.search.diversity import DiverseGroups, DiverseSiblings
from ds_seq.search.guides import SelectionMaker
from tests.unit.search.search_checks import (
    VOCAB,
    alike,
    check_batches,
    check_scores,
    distinct,
    draw_sources,
    pad,
)
from tests.unit.search.table_model import BOS, EOS, PAD, SYMBOLS, TableModel
from tests.values import beam_search, draws

LIMIT = 6
Candidate = tuple[float, float, list[int]]  # what it is preferred by, sum, tokens
Opened = list[tuple[float, list[int]]]


def candidates(model: TableModel, source: list[int], opened: Opened) -> list[list[Candidate]]:
    """The continuations of each hypothesis, the best first."""
    found = []
    for total, tokens in opened:
        scores = enumerate(model.next_log_probs(source, tokens))
        allowed = [
            (total + score, [*tokens, token])
            for token, score in scores
            if (token == EOS if len(tokens) == LIMIT else token not in (BOS, PAD))
            and (token != EOS or tokens)
        ]
        found.append([(value, value, text) for value, text in sorted(allowed, reverse=True)])
    return found


def slow_siblings(model: TableModel, source: list[int], beam: int, rate: float) -> Opened:
    """Li et al.: the place among the siblings costs `rate` each."""
    opened: Opened = [(0.0, [])]
    finished: Opened = []
    while opened and len(finished) < beam:
        everyone = [
            (value - rate * place, total, text)
            for siblings in candidates(model, source, opened)
            for place, (value, total, text) in enumerate(siblings)
        ]
        best = sorted(everyone, reverse=True)[: 2 * beam]
        finished += [(total, text) for _, total, text in best[:beam] if text[-1] == EOS]
        opened = [(total, text) for _, total, text in best if text[-1] != EOS][:beam]
    return finished[:beam]


def slow_groups(
    model: TableModel, source: list[int], beam: int, groups: int, strength: float
) -> Opened:
    """Vijayakumar et al.: a group pays for tokens that those before it have taken."""
    size = beam // groups
    opened: list[Opened] = [[(0.0, [])] for _ in range(groups)]
    finished: Opened = []
    while any(opened) and len(finished) < beam:
        taken: list[int] = []
        for number in range(groups):
            everyone = itertools.chain(*candidates(model, source, opened[number]))
            best = sorted(
                ((v - strength * taken.count(t[-1]), total, t) for v, total, t in everyone),
                reverse=True,
            )[: 2 * size]
            taken += [text[-1] for _, _, text in best[:size]]
            finished += [(total, text) for _, total, text in best[:size] if text[-1] == EOS]
            opened[number] = [(total, t) for _, total, t in best if t[-1] != EOS][:size]
    return finished[:beam]


def check_definition(
    selection: SelectionMaker, slow: Callable[[TableModel, list[int]], Opened], beam: int
) -> None:
    model, sources = TableModel(VOCAB, seed=1), draw_sources(12, seed=2)
    search = beam_search(
        SYMBOLS, beam=beam, num_best=beam, max_len_a=0, max_len_b=LIMIT, selection=selection
    )
    found = search.search(model, *pad(sources))
    for source, own in zip(sources, found, strict=True):
        expected = sorted(((s / len(t), t[:-1]) for s, t in slow(model, source)), reverse=True)
        assert [h.tokens for h in own] == [tokens for _, tokens in expected]
        assert [h.score for h in own] == pytest.approx([s for s, _ in expected], abs=1e-5)
    check_scores(model, sources, found, 1.0)
    check_batches(model, sources, search)


@pytest.mark.parametrize("rate", [0.5, 3.0])
def test_siblings_follow_their_definition(rate: float) -> None:
    check_definition(
        DiverseSiblings(rate), lambda model, source: slow_siblings(model, source, 4, rate), 4
    )


@pytest.mark.parametrize(("groups", "strength"), [(2, 0.5), (2, 4.0), (4, 0.5), (3, 1.5)])
def test_groups_follow_their_definition(groups: int, strength: float) -> None:
    beam = 6 if groups == 3 else 4
    check_definition(
        DiverseGroups(groups, strength, EOS),
        lambda model, source: slow_groups(model, source, beam, groups, strength),
        beam,
    )


@pytest.mark.parametrize(
    "selection",
    [DiverseSiblings(0.0), DiverseGroups(1, 3.0, EOS)],
    ids=["no rate", "one group"],
)
def test_without_diversity_it_is_plain_beam_search(selection: SelectionMaker) -> None:
    model, src = TableModel(VOCAB, seed=3), pad(draw_sources(15))
    for beam in (1, 5):
        plain = beam_search(SYMBOLS, beam=beam, num_best=beam)
        found = beam_search(SYMBOLS, beam=beam, num_best=beam, selection=selection).search(
            model, *src
        )
        assert all(map(alike, found, plain.search(model, *src)))


def test_groups_without_strength_are_independent_searches() -> None:
    model, src = TableModel(VOCAB, seed=3, end_bias=-9), pad(draw_sources(8))
    narrow = beam_search(SYMBOLS, beam=2, num_best=2, max_len_a=0, max_len_b=7).search(model, *src)
    search = beam_search(
        SYMBOLS, beam=6, num_best=6, max_len_a=0, max_len_b=7, selection=DiverseGroups(3, 0.0, EOS)
    )
    for own, expected in zip(search.search(model, *src), narrow, strict=True):
        assert [h.tokens for h in own] == [h.tokens for h in expected for _ in range(3)]


def test_groups_begin_differently() -> None:
    """Groups of one hypothesis each: alike without strength, different with much of it."""
    model, src = TableModel(VOCAB, seed=5, end_bias=-9.0), pad(draw_sources(20))
    for strength, different in ((0.0, 1), (50.0, 3)):
        search = beam_search(
            SYMBOLS,
            beam=3,
            num_best=3,
            max_len_a=0,
            max_len_b=6,
            selection=DiverseGroups(3, strength, EOS),
        )
        found = search.search(model, *src)
        assert {len({h.tokens[0] for h in own}) for own in found} == {different}


def test_hypotheses_do_differ() -> None:
    model, src = TableModel(VOCAB, seed=1), pad(draw_sources(12, seed=2))
    plain = beam_search(SYMBOLS, beam=4, num_best=4).search(model, *src)
    for selection in (DiverseSiblings(3.0), DiverseGroups(2, 4.0, EOS)):
        found = beam_search(SYMBOLS, beam=4, num_best=4, selection=selection).search(model, *src)
        assert not all(map(alike, found, plain))
        assert distinct(found) > 24


def test_a_model_that_answers_nan_gives_empty_translations() -> None:
    model = TableModel(VOCAB)
    model.table[::2] = float("nan")  # now and then
    sources = draw_sources(12)
    for selection in (DiverseSiblings(0.5), DiverseGroups(2, 0.5, EOS)):
        search = beam_search(SYMBOLS, beam=2, selection=selection)
        for (best,) in search.search(model, *pad(sources)):
            assert (best.score == -float("inf")) == (not best.tokens)
        model.table[:] = float("nan")
        assert all(not best.tokens for (best,) in search.search(model, *pad(sources)))


def test_what_makes_no_sense_is_refused() -> None:
    search = beam_search(SYMBOLS, beam=5, selection=DiverseGroups(2, 0.5, EOS))
    with pytest.raises(ValueError, match="2 groups"):
        search.search(TableModel(VOCAB), *pad(draw_sources(2)))
    with pytest.raises(ValueError, match="sampling"):
        beam_search(SYMBOLS, sampling=draws(), selection=DiverseSiblings(0.5))
