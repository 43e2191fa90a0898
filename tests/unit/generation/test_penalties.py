"""Length penalties, the penalty of the unknown symbol, and temperature, against definitions."""

from __future__ import annotations

import math

import pytest
import torch

from ds_seq.generation.penalties import LengthPenalty, LengthPenaltyForm
from tests.unit.generation.table_model import EOS, PAD, UNK, TableModel, all_hypotheses
from tests.values import beam_search

SOURCE = [4, 3, EOS]
LIMIT = 3


def search(model: TableModel, **settings: float | str) -> list[tuple[float, list[int]]]:
    """All hypotheses of a beam as wide as the space."""
    wide = beam_search(
        beam=60,
        num_best=60,
        max_len_a=0,
        max_len_b=LIMIT,
        **settings,  # type: ignore[arg-type]
    )
    (found,) = wide.search(model, torch.tensor([SOURCE]))
    return [(hypothesis.score, hypothesis.tokens) for hypothesis in found]


def same(found: list[tuple[float, list[int]]], expected: list[tuple[float, list[int]]]) -> bool:
    expected = sorted(expected, reverse=True)
    scores = pytest.approx([score for score, _ in expected], abs=1e-5)
    return [t for _, t in found] == [t for _, t in expected] and [s for s, _ in found] == scores


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 0.6, 2.0])
def test_gnmt_penalty_against_exhaustive_search(exponent: float) -> None:
    model = TableModel(6)
    expected = [
        (total / ((5 + len(tokens) + 1) / 6) ** exponent, tokens)
        for total, tokens in all_hypotheses(model, SOURCE, 1, LIMIT, 0.0)
    ]
    found = search(model, length_penalty=exponent, length_penalty_form="gnmt")
    assert same(found, expected)


@pytest.mark.parametrize("form", ["fairseq", "gnmt"])
@pytest.mark.parametrize("exponent", [-1.5, 0.0, 0.6, 1.2])
def test_divisor_of_a_tensor_is_that_of_its_numbers(
    form: LengthPenaltyForm, exponent: float
) -> None:
    penalty, lengths = LengthPenalty(exponent, form), [1, 2, 7, 40]
    found = penalty.divisor(torch.tensor(lengths)).tolist()
    assert found == pytest.approx([penalty.divisor(length) for length in lengths])


def test_divisors_by_hand() -> None:
    assert LengthPenalty(2.0).divisor(3) == 9.0
    assert LengthPenalty(2.0, "gnmt").divisor(1) == 1.0
    assert LengthPenalty(2.0, "gnmt").divisor(13) == 9.0


@pytest.mark.parametrize("exponent", [-1.0, 0.6])
def test_searches_that_stop_early_still_find_the_best(exponent: float) -> None:
    wrong = 0
    for seed in range(30):
        best = []
        for num_best in (1, 4):
            model = TableModel(9, seed)
            model.table *= 2
            some = beam_search(
                beam=4,
                length_penalty=exponent,
                length_penalty_form="gnmt",
                max_len_a=0,
                max_len_b=8,
                num_best=num_best,
            )
            best.append(some.search(model, torch.tensor([SOURCE]))[0][0])
        wrong += best[0].tokens != best[1].tokens
    assert wrong == 0


def test_unknown_symbols_cost_the_penalty_each() -> None:
    model = TableModel(6)
    expected = [
        ((total - 0.75 * tokens.count(UNK)) / (len(tokens) + 1), tokens)
        for total, tokens in all_hypotheses(model, SOURCE, 1, LIMIT, 0.0)
    ]
    assert same(search(model, unk_penalty=0.75), expected)


def test_an_infinite_penalty_forbids_unknown_symbols() -> None:
    found = search(TableModel(6), unk_penalty=math.inf)
    assert len(found) == 2 + 4 + 8
    assert not any(UNK in tokens for _, tokens in found)


@pytest.mark.parametrize("temperature", [0.3, 4.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    model, divided = TableModel(6), TableModel(6)
    divided.table /= temperature
    assert same(search(model, temperature=temperature), search(divided))
    assert not same(search(model), search(divided))


def test_a_low_temperature_does_not_overflow_half_precision() -> None:
    model, exact = TableModel(6), TableModel(6)
    model.table = (100 * model.table).half()
    exact.table = 1000 * model.table.float()
    assert math.isinf((model.table / 1e-3).max())
    exact_search, cold_search = beam_search(beam=2), beam_search(beam=2, temperature=1e-3)
    src = torch.tensor([SOURCE, [5, EOS, PAD]])
    for (a,), (b,) in zip(
        exact_search.search(exact, src), cold_search.search(model, src), strict=True
    ):
        assert (a.tokens, a.score) == (b.tokens, pytest.approx(b.score, rel=1e-4))


@pytest.mark.parametrize(
    "wrong", [{"unk_penalty": -1.0}, {"temperature": 0.0}, {"temperature": math.nan}]
)
def test_impossible_values_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        beam_search(**wrong)  # type: ignore[arg-type]
