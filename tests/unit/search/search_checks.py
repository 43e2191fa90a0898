"""What must hold for every kind of search, on the table model."""

from __future__ import annotations

import random

import pytest

from ds_seq.data.batch import Padded, pad_rows
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.hypotheses import Hypothesis
from tests.unit.search.table_model import EOS, PAD, TableModel, normalized

VOCAB = 9


def draw_sources(count: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [
        [draw.randrange(3, VOCAB) for _ in range(draw.randrange(1, 9))] + [EOS]
        for _ in range(count)
    ]


def pad(sources: list[list[int]]) -> Padded:
    return pad_rows(sources, PAD)


def alike(left: list[Hypothesis], right: list[Hypothesis]) -> bool:
    """Whether both hold the same hypotheses with the same scores."""
    return [h.tokens for h in left] == [h.tokens for h in right] and [
        h.score for h in left
    ] == pytest.approx([h.score for h in right], abs=1e-5)


def check_scores(
    model: TableModel, sources: list[list[int]], found: list[list[Hypothesis]], penalty: float
) -> None:
    """Scores must be the model's own."""
    for source, hypotheses in zip(sources, found, strict=True):
        for hypothesis in hypotheses:
            forced = model.forced(source, hypothesis.tokens)
            assert hypothesis.token_scores == pytest.approx(forced, abs=1e-4)
            assert hypothesis.score == pytest.approx(normalized(forced, penalty), abs=1e-4)


def check_batches(model: TableModel, sources: list[list[int]], search: BeamSearch) -> None:
    """A sentence must get the same in any batch, at any place in it."""
    together = search.search(model, *pad(sources))
    numbers = list(range(len(sources)))
    random.Random(0).shuffle(numbers)
    mixed = search.search(model, *pad([sources[n] for n in numbers]), numbers=numbers)
    for number, found in zip(numbers, mixed, strict=True):
        assert alike(found, together[number])
        (alone,) = search.search(model, *pad([sources[number]]), numbers=[number])
        assert alike(alone, together[number])


def distinct(found: list[list[Hypothesis]]) -> int:
    """How many hypotheses are different: a search that finds few says little."""
    return len({tuple(h.tokens) for hypotheses in found for h in hypotheses})
