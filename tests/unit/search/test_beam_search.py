"""Beam search against definitions: exhaustive search, greedy search, forced decoding."""

from __future__ import annotations

import pytest

from ds_seq.search.hypotheses import Hypothesis
from tests.unit.search.search_checks import VOCAB, draw_sources, pad
from tests.unit.search.table_model import (
    BOS,
    EOS,
    PAD,
    SYMBOLS,
    TableModel,
    all_hypotheses,
    normalized,
    slow_beam_search,
)
from tests.values import beam_search


def same(left: Hypothesis, right: Hypothesis) -> bool:
    return left.tokens == right.tokens and left.score == pytest.approx(right.score, abs=1e-5)


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("min_len", [0, 2])
def test_wide_beam_is_exhaustive_search(length_penalty: float, min_len: int) -> None:
    model, source, limit = TableModel(6), [4, 3, EOS], 3
    expected = sorted(all_hypotheses(model, source, min_len, limit, length_penalty), reverse=True)
    search = beam_search(
        SYMBOLS,
        beam=60,
        num_best=60,
        length_penalty=length_penalty,
        min_len=min_len,
        max_len_a=0,
        max_len_b=limit,
    )
    (found,) = search.search(model, *pad([source]))
    assert [h.tokens for h in found] == [tokens for _, tokens in expected]
    assert [h.score for h in found] == pytest.approx([score for score, _ in expected], abs=1e-5)


def test_beam_of_one_is_greedy_search() -> None:
    model, sources = TableModel(VOCAB), draw_sources(8)
    found = beam_search(SYMBOLS, beam=1).search(model, *pad(sources))
    for source, (hypothesis,) in zip(sources, found, strict=True):
        limit = int(1.2 * len(source)) + 10
        tokens: list[int] = []
        while len(tokens) < limit:
            scores = model.next_log_probs(source, tokens)
            allowed = [t for t in range(VOCAB) if t not in (BOS, PAD) and (tokens or t != EOS)]
            best = max(allowed, key=scores.__getitem__)
            if best == EOS:
                break
            tokens.append(best)
        assert hypothesis.tokens == tokens


@pytest.mark.parametrize("beam", [1, 2, 4])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_narrow_beam_follows_its_definition(beam: int, length_penalty: float) -> None:
    model, sources = TableModel(VOCAB, seed=1), draw_sources(10, seed=2)
    search = beam_search(
        SYMBOLS, beam=beam, num_best=beam, length_penalty=length_penalty, max_len_a=0, max_len_b=6
    )
    for source, found in zip(sources, search.search(model, *pad(sources)), strict=True):
        expected = slow_beam_search(model, source, beam, 6, length_penalty)
        assert [h.tokens for h in found] == [tokens for _, tokens in expected]
        assert [h.score for h in found] == pytest.approx([s for s, _ in expected], abs=1e-5)


def test_scores_are_those_of_forced_decoding() -> None:
    model, sources = TableModel(VOCAB), draw_sources(6)
    search = beam_search(SYMBOLS, beam=4, num_best=4, length_penalty=0.7)
    for source, found in zip(sources, search.search(model, *pad(sources)), strict=True):
        for hypothesis in found:
            forced = model.forced(source, hypothesis.tokens)
            assert hypothesis.token_scores == pytest.approx(forced, abs=1e-4)
            assert hypothesis.score == pytest.approx(normalized(forced, 0.7), abs=1e-4)


def test_result_does_not_depend_on_the_batch() -> None:
    model, sources = TableModel(VOCAB, seed=3), draw_sources(12, seed=4)
    search = beam_search(SYMBOLS, beam=3, num_best=2)
    together = search.search(model, *pad(sources))
    backwards = search.search(model, *pad(sources[::-1]))[::-1]
    for source, a, b in zip(sources, together, backwards, strict=True):
        (alone,) = search.search(model, *pad([source]))
        wide = search.search(model, *pad([source, [5] * 30 + [EOS]]))[0]
        for other in (a, b, wide):
            assert len(other) == len(alone)
            assert all(map(same, other, alone))


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0])
def test_asking_for_one_finds_the_same_best_in_fewer_steps(length_penalty: float) -> None:
    sources, steps = draw_sources(20, seed=5), {}
    best = {}
    for num_best in (1, 4):
        model = TableModel(VOCAB, seed=6)
        model.table *= 3  # sure of itself, as a trained model is
        search = beam_search(
            SYMBOLS,
            beam=4,
            num_best=num_best,
            length_penalty=length_penalty,
            max_len_a=0,
            max_len_b=8,
        )
        best[num_best] = [search.search(model, *pad([s]))[0][0] for s in sources]
        steps[num_best] = model.steps
    assert all(map(same, best[1], best[4]))
    assert steps[1] < steps[4]


@pytest.mark.parametrize("end_bias", [-9.0, 9.0])
def test_lengths_are_within_limits(end_bias: float) -> None:
    model, sources = TableModel(VOCAB, end_bias=end_bias), draw_sources(8)
    search = beam_search(SYMBOLS, beam=3, num_best=3, min_len=3, max_len_a=0.5, max_len_b=3)
    for source, found in zip(sources, search.search(model, *pad(sources)), strict=True):
        lengths = {len(h.tokens) for h in found}
        limit = int(0.5 * len(source)) + 3
        assert min(lengths) >= 3
        assert max(lengths) <= limit
        assert lengths == ({limit} if end_bias < 0 else lengths)
        # the shortest allowed is reached when ending is cheap
        assert 3 in lengths or end_bias < 0


def test_decoder_positions_bound_the_length() -> None:
    model = TableModel(VOCAB, end_bias=-20.0)
    (found,) = beam_search(SYMBOLS, beam=2, max_positions=6).search(model, *pad([[5, 4, EOS]]))
    assert len(found[0].tokens) == 5  # and the end symbol


def test_limit_below_min_len_still_ends() -> None:
    search = beam_search(SYMBOLS, beam=2, min_len=9, max_len_a=0, max_len_b=4)
    (found,) = search.search(TableModel(VOCAB), *pad([[5, EOS]]))
    assert len(found[0].tokens) == 4


def test_a_limit_below_min_len_is_that_of_its_sentence() -> None:
    search = beam_search(SYMBOLS, beam=2, num_best=2, min_len=6, max_len_a=1, max_len_b=0)
    src = pad([[5, 4, EOS], [3, 8, 7, 4, 5, 6, 6, 4, EOS]])
    short, long = search.search(TableModel(VOCAB, end_bias=9.0), *src)
    assert {len(h.tokens) for h in short} == {3}
    assert min(len(h.tokens) for h in long) >= 6


def repeats(tokens: list[int], size: int) -> bool:
    grams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return len(grams) != len(set(grams))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_repeats(size: int) -> None:
    model = TableModel(VOCAB, seed=7, end_bias=-4.0)
    src = pad(draw_sources(10))
    free = beam_search(SYMBOLS, beam=3, num_best=3, max_len_a=0, max_len_b=40).search(model, *src)
    assert any(repeats(h.tokens, size) for found in free for h in found)
    search = beam_search(
        SYMBOLS, beam=3, num_best=3, max_len_a=0, max_len_b=40, no_repeat_ngram=size
    )
    blocked = search.search(model, *src)
    assert not any(repeats(h.tokens, size) for found in blocked for h in found)


def test_ngram_blocking_bans_nothing_else() -> None:
    """With blocking, a wide beam finds the best of all hypotheses without a repetition."""
    model, source = TableModel(6, seed=8), [5, EOS]
    allowed = [h for h in all_hypotheses(model, source, 1, 4, 1.0) if not repeats(h[1], 2)]
    search = beam_search(
        SYMBOLS, beam=150, num_best=150, max_len_a=0, max_len_b=4, no_repeat_ngram=2
    )
    (found,) = search.search(model, *pad([source]))
    assert [h.tokens for h in found] == [tokens for _, tokens in sorted(allowed, reverse=True)]


def test_special_symbols_are_never_generated() -> None:
    model = TableModel(VOCAB)
    model.table[:, [BOS, PAD]] += 50.0
    for found in beam_search(SYMBOLS, beam=4, num_best=4).search(model, *pad(draw_sources(8))):
        for hypothesis in found:
            assert not {BOS, PAD, EOS} & set(hypothesis.tokens)


def test_a_model_that_answers_nan_gives_empty_translations() -> None:
    model = TableModel(VOCAB)
    model.table[:] = float("nan")
    found = beam_search(SYMBOLS, beam=2).search(model, *pad(draw_sources(3)))
    assert [h.tokens for hypotheses in found for h in hypotheses] == [[], [], []]


def test_half_precision_logits_are_normalized_in_single() -> None:
    model = TableModel(VOCAB)
    model.table = model.table.bfloat16()
    exact = TableModel(VOCAB)
    exact.table = model.table.float()
    src = pad(draw_sources(5))
    search = beam_search(SYMBOLS, beam=3)
    for a, b in zip(search.search(model, *src), search.search(exact, *src), strict=True):
        assert same(a[0], b[0])


@pytest.mark.parametrize("extra", [1, 100])
def test_a_finished_rank_continues_without_changing_its_result(extra: int) -> None:
    """100 steps are more than the cache of the short search has room for."""
    model, src = TableModel(VOCAB), pad(draw_sources(5))
    search = beam_search(SYMBOLS, beam=2)
    expected = search.search(model, *src)
    model.steps = 0
    others = iter(range(extra))
    flags: list[bool] = []

    def any_rank(flag: bool) -> bool:
        flags.append(flag)
        return flag or next(others, None) is not None

    found = search.search(model, *src, any_rank)
    assert [h for (h,) in found] == [h for (h,) in expected]
    assert model.steps == flags.count(True) + extra == len(flags) - 1


def test_a_rank_without_sentences_takes_part() -> None:
    model, others = TableModel(VOCAB), iter(range(7))
    search = beam_search(SYMBOLS, beam=2)
    nothing = pad([])
    assert search.search(model, *nothing, lambda flag: flag or next(others, None) is not None) == []
    assert model.steps == 7
    assert search.search(model, *nothing) == []


@pytest.mark.parametrize("wrong", [{"num_best": 6}, {"beam": 0}, {"max_len_b": -1}])
def test_impossible_searches_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        beam_search(SYMBOLS, **wrong)
