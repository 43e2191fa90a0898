"""Sampling: the right tokens with the right frequencies, whatever the batch."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from ds_seq.generation import translate as translate_module
from ds_seq.generation.translate import Share, translate
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.search.sampling import Sampling
from tests.unit.generation.test_translate import draw_lines
from tests.unit.search.table_model import (
    BOS,
    EOS,
    PAD,
    SYMBOLS,
    UNK,
    TableModel,
    normalized,
    words,
)
from tests.unit.search.test_beam_search import VOCAB, draw_sources, pad, repeats
from tests.values import batch_limits, beam_search, draws

SOURCE = [4, 3, EOS]
SAMPLING = beam_search(SYMBOLS, sampling=draws(seed=3), max_len_a=0, max_len_b=12)


def sampler(count: int, sampling: Sampling, limit: int, **settings: float) -> BeamSearch:
    return beam_search(
        SYMBOLS,
        num_best=count,
        sampling=sampling,
        max_len_a=0,
        max_len_b=limit,
        **settings,  # type: ignore[arg-type]
    )


def truncated(probs: dict[int, float], sampling: Sampling) -> dict[int, float]:
    """The distribution after truncation, as its definitions read."""
    ranked = sorted(probs, key=probs.__getitem__, reverse=True)
    total = sum(probs.values())
    kept = ranked
    if sampling.top_k > 0:
        kept = ranked[: sampling.top_k]
    elif sampling.top_p < 1:
        count = 1
        while sum(probs[token] for token in ranked[:count]) < sampling.top_p * total:
            count += 1
        kept = ranked[:count]
    elif sampling.epsilon > 0:
        kept = [token for token in ranked if probs[token] > sampling.epsilon * total] or ranked[:1]
    mass = sum(probs[token] for token in kept)
    return {token: probs[token] / mass for token in kept}


def distribution(
    model: TableModel, sampling: Sampling, limit: int, prefix: tuple[int, ...] = ()
) -> dict[tuple[int, ...], float]:
    """Probabilities of everything that may be drawn; at least one token before the end."""
    if len(prefix) == limit:
        return {prefix: 1.0}
    scores = model.next_log_probs(SOURCE, list(prefix))
    banned = {BOS, PAD} if prefix else {BOS, PAD, EOS}
    probs = {t: math.exp(score) for t, score in enumerate(scores) if t not in banned}
    found: dict[tuple[int, ...], float] = {}
    for token, share in truncated(probs, sampling).items():
        if token == EOS:
            found[prefix] = share
        else:
            longer = distribution(model, sampling, limit, (*prefix, token))
            found |= {tokens: share * p for tokens, p in longer.items()}
    return found


def distance(found: list[Hypothesis], expected: dict[tuple[int, ...], float]) -> float:
    """Total variation between what was drawn and a distribution."""
    counts = Counter(tuple(hypothesis.tokens) for hypothesis in found)
    return 0.5 * sum(
        abs(counts[tokens] / len(found) - expected.get(tokens, 0.0))
        for tokens in {*counts, *expected}
    )


@pytest.mark.parametrize(
    "sampling",
    [draws(), draws(top_k=2), draws(top_p=0.8), draws(epsilon=0.2)],
    ids=["all", "top_k", "top_p", "epsilon"],
)
def test_frequencies_are_the_models_probabilities(sampling: Sampling) -> None:
    model = TableModel(7, seed=1)
    model.table /= 2
    expected = distribution(model, sampling, 3)
    (found,) = sampler(8000, sampling, 3).search(model, *pad([SOURCE]))
    assert len(found) == 8000
    assert distance(found, expected) < 0.04
    assert {tuple(h.tokens) for h in found} <= set(expected)
    for other in {draws(), draws(top_k=2), draws(top_p=0.8), draws(epsilon=0.2)}:
        if other != sampling:
            assert distance(found, distribution(model, other, 3)) > 0.1


def test_temperature_changes_the_distribution() -> None:
    model, divided = TableModel(7, seed=1), TableModel(7, seed=1)
    divided.table /= 2.5
    search = sampler(6000, draws(), 2, temperature=2.5)
    (found,) = search.search(model, *pad([SOURCE]))
    assert distance(found, distribution(divided, draws(), 2)) < 0.04
    assert distance(found, distribution(model, draws(), 2)) > 0.1


PROBS = [0.05, 0.35, 0.1, 0.25, 0.1, 0.15]


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (draws(), {0, 1, 2, 3, 4, 5}),
        (draws(top_k=1), {1}),
        (draws(top_k=3), {1, 3, 5}),
        (draws(top_k=4), {1, 2, 3, 4, 5}),  # as probable as the last
        (draws(top_k=99), {0, 1, 2, 3, 4, 5}),
        (draws(top_p=0.01), {1}),
        (draws(top_p=0.34), {1}),
        (draws(top_p=0.36), {1, 3}),
        (draws(top_p=0.59), {1, 3}),
        (draws(top_p=0.61), {1, 3, 5}),
        (draws(top_p=0.8), {1, 2, 3, 4, 5}),
        (draws(top_p=0.96), {0, 1, 2, 3, 4, 5}),
        (draws(epsilon=0.06), {1, 2, 3, 4, 5}),
        (draws(epsilon=0.14), {1, 3, 5}),
        (draws(epsilon=0.16), {1, 3}),
        (draws(epsilon=0.9), {1}),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_truncations_by_hand(sampling: Sampling, kept: set[int], scale: float) -> None:
    """Also of probabilities that do not sum to 1, because some tokens are ruled out."""
    probs = scale * torch.tensor([PROBS, PROBS[::-1]])
    before = probs.clone()
    sampling.truncate(probs)
    mirrored = {len(PROBS) - 1 - token for token in kept}
    assert [set(row.nonzero().flatten().tolist()) for row in probs] == [kept, mirrored]
    assert torch.equal(probs[probs > 0], before[probs > 0])


def test_epsilon_keeps_nothing_of_just_that_probability() -> None:
    probs = torch.tensor([[0.5, 0.25, 0.25]])
    draws(epsilon=0.25).truncate(probs)
    assert probs.tolist() == [[0.5, 0.0, 0.0]]


def test_a_nucleus_of_very_many_tokens() -> None:
    """More tokens than are looked at at first; and in another row fewer."""
    probs = torch.full((2, 1000), 0.0001)
    probs[0, 7] = 0.9
    draws(top_p=0.85).truncate(probs)
    assert probs[0].nonzero().flatten().tolist() == [7]
    assert probs[1].count_nonzero() == 1000
    probs = torch.linspace(1.0, 2.0, 1000)[None] / 1500
    draws(top_p=0.75).truncate(probs)
    few = int(probs.count_nonzero())
    assert torch.equal(probs[0].nonzero().flatten(), torch.arange(1000 - few, 1000))
    assert 0.75 <= probs.sum() < 0.7521


def test_only_the_most_probable_is_greedy_search() -> None:
    model, src = TableModel(VOCAB), pad(draw_sources(8))
    greedy = beam_search(SYMBOLS, beam=1).search(model, *src)
    only = beam_search(SYMBOLS, sampling=draws(top_k=1)).search(model, *src)
    assert [h.tokens for (h,) in only] == [h.tokens for (h,) in greedy]
    assert [h.score for (h,) in only] == pytest.approx([h.score for (h,) in greedy])


def test_scores_are_those_of_forced_decoding() -> None:
    """By the whole distribution, not by the truncated one."""
    model, sources = TableModel(VOCAB), draw_sources(6)
    search = sampler(4, draws(top_k=2), 9, length_penalty=0.7)
    for source, found in zip(sources, search.search(model, *pad(sources)), strict=True):
        for hypothesis in found:
            forced = model.forced(source, hypothesis.tokens)
            assert hypothesis.token_scores == pytest.approx(forced, abs=1e-4)
            assert hypothesis.score == pytest.approx(normalized(forced, 0.7), abs=1e-4)


def test_draws_do_not_depend_on_the_batch() -> None:
    model, sources = TableModel(VOCAB), draw_sources(10)
    search = replace(SAMPLING, num_best=3)
    together = search.search(model, *pad(sources))
    backwards = search.search(model, *pad(sources[::-1]), numbers=range(9, -1, -1))[::-1]
    for number, source in enumerate(sources):
        (alone,) = search.search(model, *pad([source]), numbers=[number])
        assert together[number] == backwards[number] == alone
    single = SAMPLING.search(model, *pad(sources))
    assert [found[:1] for found in together] == single


def test_sentences_samples_and_seeds_differ() -> None:
    model = TableModel(VOCAB, end_bias=-9.0)
    search = replace(SAMPLING, num_best=20)
    twice = search.search(model, *pad([SOURCE, SOURCE]))
    again = replace(search, sampling=draws(seed=4)).search(model, *pad([SOURCE]))
    drawn = [tuple(h.tokens) for found in (*twice, *again) for h in found]
    assert len(set(drawn)) == 60
    assert search.search(model, *pad([SOURCE, SOURCE])) == twice


def test_random_numbers_are_uniform_and_unrelated() -> None:
    sampling = draws(seed=7)
    drawn = [sampling.numbers(line, k, 50).tolist() for line in (0, 1, 70) for k in range(3)]
    rows = torch.tensor(drawn, dtype=torch.float64)
    assert 0 <= rows.min() and rows.max() < 1
    assert abs(rows.mean() - 0.5) < 0.04 and abs(rows.var() - 1 / 12) < 0.01
    assert len(rows.unique()) == rows.numel(), "one sample's numbers go on with those of another"
    related = torch.corrcoef(rows) - torch.eye(len(rows))
    assert related.abs().max() < 0.5  # of 36 pairs of 50 numbers; 1 for any two that are equal
    assert sampling.numbers(70, 2, 8).tolist() == sampling.numbers(70, 2, 50)[:8].tolist()


@pytest.mark.parametrize("number", [0.0, 1 - 2.0**-53])
def test_extreme_numbers_draw_nothing_impossible(
    number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They draw the first and the last possible token; before and behind these there are others."""
    monkeypatch.setattr(Sampling, "numbers", lambda self, line, k, n: [number] * n)
    model, source = TableModel(VOCAB), [5, 4, EOS]
    model.table[:, VOCAB - 2 :] -= 200.0  # probability 0 in single precision
    (found,) = sampler(1, draws(), 6, min_len=6).search(model, *pad([source]))
    assert found[0].tokens == [UNK if number == 0 else VOCAB - 3] * 6
    (best,) = beam_search(SYMBOLS, beam=1).search(model, *pad([source]))
    (drawn,) = beam_search(SYMBOLS, sampling=draws(top_k=1)).search(model, *pad([source]))
    assert drawn[0].tokens == best[0].tokens


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_draws_do_not_depend_on_batches_and_ranks(
    num_ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks one after the other, as if their answers were gathered."""
    lines = ["", *draw_lines(13), "", *draw_lines(3)]
    model, vocab, cpu = TableModel(VOCAB), words(VOCAB), torch.device("cpu")
    whole = translate(model, vocab, lines, SAMPLING, batch_limits(), cpu)
    shares: list[object] = []

    def gather(mine: object) -> list[object] | None:
        shares.append(mine)
        return shares if len(shares) == num_ranks else None

    monkeypatch.setattr(translate_module, "gather_objects", gather)
    limits = batch_limits(max_sentences=2)
    answers = [
        translate(model, vocab, lines, SAMPLING, limits, cpu, Share(rank, num_ranks))
        for rank in range(num_ranks)
    ]
    assert answers[-1] == whole
    assert whole is not None and len(set(whole.lines)) == 17


def test_limits_and_vetoes_hold() -> None:
    model, sources = TableModel(VOCAB, end_bias=1.0), draw_sources(8)
    model.table[:, [BOS, PAD]] += 9.0
    search = sampler(9, draws(), 7, min_len=3, no_repeat_ngram=2, unk_penalty=math.inf)
    lengths = set()
    for found in search.search(model, *pad(sources)):
        for hypothesis in found:
            assert not {BOS, PAD, EOS, UNK} & set(hypothesis.tokens)
            assert not repeats(hypothesis.tokens, 2)
            lengths.add(len(hypothesis.tokens))
    assert lengths == {3, 4, 5, 6, 7}


def test_a_limit_is_the_sentences_own() -> None:
    model, sources = TableModel(VOCAB, end_bias=-30.0), draw_sources(8)
    search = beam_search(SYMBOLS, sampling=draws(), max_len_a=1, max_len_b=1, min_len=50)
    for source, (hypothesis,) in zip(sources, search.search(model, *pad(sources)), strict=True):
        assert len(hypothesis.tokens) == len(source) + 1


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_model_without_probabilities_gives_empty_translations(value: float) -> None:
    model = TableModel(VOCAB)
    model.table[:] = value
    found = replace(SAMPLING, num_best=2).search(model, *pad(draw_sources(3)))
    assert found == [[Hypothesis([], -math.inf, [-math.inf])] * 2] * 3


@pytest.mark.parametrize("extra", [1, 100])
def test_a_finished_rank_continues_without_changing_its_result(extra: int) -> None:
    model, src = TableModel(VOCAB), pad(draw_sources(5))
    search = replace(SAMPLING, num_best=2)
    expected = search.search(model, *src)
    others = iter(range(extra))
    model.steps = 0
    found = search.search(model, *src, lambda flag: flag or next(others, None) is not None)
    assert found == expected
    steps = max(len(h.token_scores) for samples in found for h in samples)
    assert model.steps == steps + extra


def test_a_rank_without_sentences_takes_part() -> None:
    model, others = TableModel(VOCAB), iter(range(7))
    nothing = pad([])
    search = replace(SAMPLING, num_best=2)
    assert search.search(model, *nothing, lambda flag: flag or next(others, None) is not None) == []
    assert model.steps == 7


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"epsilon": 1.0},
        {"top_k": 3, "top_p": 0.5},
        {"top_p": 0.5, "epsilon": 0.1},
    ],
)
def test_impossible_truncations_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="truncation"):
        draws(**wrong)  # type: ignore[arg-type]


def test_more_samples_than_the_beam_is_wide() -> None:
    assert len(replace(SAMPLING, beam=1, num_best=3).search(TableModel(9), *pad([SOURCE]))[0]) == 3
    with pytest.raises(ValueError, match="num_best"):
        replace(SAMPLING, num_best=0)
