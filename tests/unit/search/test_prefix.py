"""Forced prefixes against exhaustive search and forced decoding."""

from __future__ import annotations

import pytest

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
from tests.unit.search.table_model import EOS, SYMBOLS, TableModel, all_hypotheses, normalized
from tests.values import beam_search, draws

PREFIXES = [[4, 4, 5], [], [6], [8, 3, 8, 3, 8], [5, 7], [], [7, 7, 7]]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_wide_beam_finds_all_that_begin_so(length_penalty: float) -> None:
    model, sources, prefixes = TableModel(6), [[4, 3, EOS], [5, EOS], [3, EOS]], [[5, 4], [], [3]]
    search = beam_search(
        SYMBOLS,
        beam=130,
        num_best=130,
        length_penalty=length_penalty,
        max_len_a=0,
        max_len_b=4,
        guides=(Prefixes(prefixes),),
    )
    found = search.search(model, *pad(sources))
    for source, prefix, hypotheses in zip(sources, prefixes, found, strict=True):
        expected = sorted(
            (h for h in all_hypotheses(model, source, 1, 4, length_penalty)
             if h[1][: len(prefix)] == prefix),
            reverse=True,
        )  # fmt: skip
        assert [h.tokens for h in hypotheses] == [tokens for _, tokens in expected]
        scores = [score for score, _ in expected]
        assert [h.score for h in hypotheses] == pytest.approx(scores, abs=1e-5)


def test_limits_give_way_to_the_prefix_and_hold_after_it() -> None:
    model, prefix = TableModel(VOCAB, end_bias=-9.0), [4, 5, 6, 7, 8]
    for limit in (2, 7):
        search = beam_search(
            SYMBOLS, beam=3, max_len_a=0, max_len_b=limit, guides=(Prefixes([prefix]),)
        )
        ((best,),) = search.search(model, *pad([[5, EOS]]))
        assert best.tokens[:5] == prefix
        assert len(best.tokens) == max(limit, 5)
        assert best.score == pytest.approx(normalized(model.forced([5, EOS], best.tokens), 1.0))


def test_a_prefix_may_repeat_what_the_rest_may_not() -> None:
    model, prefix = TableModel(VOCAB, end_bias=-4.0), [4, 5, 4, 5]
    search = beam_search(
        SYMBOLS,
        beam=3,
        max_len_a=0,
        max_len_b=20,
        no_repeat_ngram=2,
        guides=(Prefixes([prefix] * 6),),
    )
    for (best,) in search.search(model, *pad(draw_sources(6))):
        assert best.tokens[:4] == prefix
        pairs = list(zip(best.tokens, best.tokens[1:], strict=False))
        assert len(pairs) > 8
        assert len(set(pairs)) == len(pairs) - 1  # 4 5 alone, in the prefix


def test_every_sentence_has_its_own() -> None:
    model, sources = TableModel(VOCAB, seed=1), draw_sources(len(PREFIXES))
    search = beam_search(SYMBOLS, beam=3, num_best=3, guides=(Prefixes(PREFIXES),))
    found = search.search(model, *pad(sources))
    plain = beam_search(SYMBOLS, beam=3, num_best=3).search(model, *pad(sources))
    for prefix, own, free in zip(PREFIXES, found, plain, strict=True):
        assert all(h.tokens[: len(prefix)] == prefix for h in own)
        assert prefix or alike(own, free)
    check_scores(model, sources, found, 1.0)
    check_batches(model, sources, search)
    assert distinct(found) == 3 * len(PREFIXES)


def test_sentences_may_end_before_the_prefixes_of_others() -> None:
    model, sources = TableModel(VOCAB, end_bias=9.0), draw_sources(8, seed=3)
    prefixes = [
        [token] * length
        for token, length in zip(range(3, 11), (0, 9, 1, 7, 0, 5, 2, 8), strict=True)
    ]
    prefixes = [[min(token, VOCAB - 1) for token in prefix] for prefix in prefixes]
    search = beam_search(SYMBOLS, beam=2, guides=(Prefixes(prefixes),))
    for prefix, (best,) in zip(prefixes, search.search(model, *pad(sources)), strict=True):
        assert best.tokens[: len(prefix)] == prefix
        assert len(best.tokens) <= len(prefix) + 1
    check_batches(model, sources, search)


def test_samples_begin_so_too() -> None:
    model, sources = TableModel(VOCAB, seed=2), draw_sources(len(PREFIXES))
    model.table[:, 7] = -300.0  # so improbable that a single-precision probability would be 0
    search = beam_search(
        SYMBOLS, num_best=4, sampling=draws(top_p=0.9, seed=5), guides=(Prefixes(PREFIXES),)
    )
    found = search.search(model, *pad(sources))
    for prefix, own in zip(PREFIXES, found, strict=True):
        assert all(h.tokens[: len(prefix)] == prefix for h in own)
    check_scores(model, sources, found, 1.0)
    check_batches(model, sources, search)
    assert distinct(found) > 3 * len(PREFIXES)


def test_all_may_open_alike() -> None:
    model, sources = TableModel(VOCAB, seed=2), draw_sources(len(PREFIXES))
    src = pad(sources)
    joined = beam_search(SYMBOLS, beam=3, guides=(Prefixes([[8, 4, *own] for own in PREFIXES]),))
    search = beam_search(SYMBOLS, beam=3, guides=(Prefixes(PREFIXES, [8, 4]),))
    assert all(map(alike, search.search(model, *src), joined.search(model, *src)))
    everywhere = beam_search(SYMBOLS, beam=3, guides=(Prefixes(common=[8]),)).search(model, *src)
    assert all(best.tokens[0] == 8 for (best,) in everywhere)
    check_batches(model, sources, search)
