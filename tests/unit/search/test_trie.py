"""Outputs from a list against scoring the list one by one."""

from __future__ import annotations

import random

import pytest

from ds_seq.search.prefix import Prefixes
from ds_seq.search.trie import AllowedOutputs
from tests.unit.search.search_checks import (
    VOCAB,
    check_batches,
    check_scores,
    distinct,
    draw_sources,
    pad,
)
from tests.unit.search.table_model import EOS, SYMBOLS, TableModel, normalized
from tests.values import beam_search, draws


def draw_outputs(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Different outputs, some of which begin others."""
    draw = random.Random(seed)
    lines = {
        tuple(draw.choices(range(3, VOCAB), k=draw.randrange(1, longest))) for _ in range(count)
    }
    lines |= {line[:-1] for line in list(lines)[::3] if len(line) > 1}
    return [list(line) for line in sorted(lines)]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_wide_beam_ranks_the_whole_list(length_penalty: float) -> None:
    model, sources, outputs = TableModel(VOCAB), draw_sources(5), draw_outputs(30, 6)
    search = beam_search(
        SYMBOLS,
        beam=len(outputs),
        num_best=len(outputs),
        length_penalty=length_penalty,
        max_len_a=0,
        max_len_b=2,  # gives way
        guides=(AllowedOutputs(outputs, VOCAB, EOS),),
    )
    for source, found in zip(sources, search.search(model, *pad(sources)), strict=True):
        expected = sorted(
            ((normalized(model.forced(source, o), length_penalty), o) for o in outputs),
            reverse=True,
        )
        assert [h.tokens for h in found] == [tokens for _, tokens in expected]
        assert [h.score for h in found] == pytest.approx([s for s, _ in expected], abs=1e-5)


def test_narrow_beam_stays_in_the_list() -> None:
    model, sources, outputs = TableModel(VOCAB, seed=1), draw_sources(12), draw_outputs(200, 8)
    search = beam_search(SYMBOLS, beam=3, num_best=2, guides=(AllowedOutputs(outputs, VOCAB, EOS),))
    found = search.search(model, *pad(sources))
    assert all(h.tokens in outputs for hypotheses in found for h in hypotheses)
    check_scores(model, sources, found, 1.0)
    check_batches(model, sources, search)
    assert distinct(found) > 12


def test_samples_stay_in_the_list() -> None:
    model, sources, outputs = TableModel(VOCAB, seed=1), draw_sources(6), draw_outputs(60, 6)
    guides = (AllowedOutputs(outputs, VOCAB, EOS),)
    search = beam_search(SYMBOLS, num_best=8, sampling=draws(), guides=guides)
    found = search.search(model, *pad(sources))
    assert all(h.tokens in outputs for hypotheses in found for h in hypotheses)
    check_scores(model, sources, found, 1.0)
    assert distinct(found) > 12


def test_a_prefix_chooses_from_the_list() -> None:
    model, source = TableModel(VOCAB), [5, EOS]
    outputs = [[4, 5], [4, 6, 7], [4, 6], [5, 5]]
    search = beam_search(
        SYMBOLS,
        beam=4,
        num_best=4,
        guides=(Prefixes([[4, 6]]), AllowedOutputs(outputs, VOCAB, EOS)),
    )
    (found,) = search.search(model, *pad([source]))
    assert sorted(h.tokens for h in found) == [[4, 6], [4, 6, 7]]


def test_where_nothing_is_left_the_score_says_so() -> None:
    guides = (Prefixes([[7]]), AllowedOutputs([[4, 5], [5]], VOCAB, EOS))
    for search in (
        beam_search(SYMBOLS, guides=guides),
        beam_search(SYMBOLS, sampling=draws(), guides=guides),
    ):
        ((best,),) = search.search(TableModel(VOCAB), *pad([[5, EOS]]))
        assert best.score == float("-inf")


def test_a_list_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no output"):
        AllowedOutputs([], VOCAB, EOS)
