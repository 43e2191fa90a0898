"""Ensembles against one model whose table is the mean of tables."""

from __future__ import annotations

import pytest
import torch

from ds_seq.search.ensemble import Ensemble, EnsembleMean
from tests.unit.search.search_checks import VOCAB, alike, distinct, draw_sources, pad
from tests.unit.search.table_model import SYMBOLS, TableModel
from tests.values import beam_search

SEARCH = beam_search(SYMBOLS, beam=4, num_best=4)


def mean_of(models: list[TableModel], mean: EnsembleMean) -> TableModel:
    """One model that says what all say together."""
    one = TableModel(VOCAB)
    tables = torch.stack([model.table.double().log_softmax(-1) for model in models])
    if mean == "probabilities":
        one.table = tables.exp().mean(0).log().float()
    else:
        one.table = tables.mean(0).log_softmax(-1).float()
    return one


@pytest.mark.parametrize("mean", ["probabilities", "log_probabilities"])
@pytest.mark.parametrize("num_models", [2, 3])
def test_an_ensemble_is_the_model_of_the_mean(mean: EnsembleMean, num_models: int) -> None:
    models = [TableModel(VOCAB, seed) for seed in range(num_models)]
    src = pad(draw_sources(12))
    found = SEARCH.search(Ensemble(models, mean), *src)
    expected = SEARCH.search(mean_of(models, mean), *src)
    assert all(map(alike, found, expected))
    first = SEARCH.search(models[0], *src)
    assert not all(map(alike, found, first))
    assert distinct(found) > 24


@pytest.mark.parametrize("mean", ["probabilities", "log_probabilities"])
def test_one_model_twice_is_that_model(mean: EnsembleMean) -> None:
    model, src = TableModel(VOCAB), pad(draw_sources(8))
    expected = SEARCH.search(model, *src)
    for copies in (1, 2):
        assert all(map(alike, SEARCH.search(Ensemble([model] * copies, mean), *src), expected))


def test_what_one_model_excludes_is_out_only_with_log_probabilities() -> None:
    sure, never = TableModel(VOCAB), TableModel(VOCAB, seed=1)
    sure.table[:, 5] += 30.0
    never.table[:, 5] = -float("inf")
    src = pad(draw_sources(4))
    used = {
        mean: any(5 in h.tokens for found in SEARCH.search(Ensemble([sure, never], mean), *src)
                  for h in found)
        for mean in ("probabilities", "log_probabilities")
    }  # fmt: skip
    assert used == {"probabilities": True, "log_probabilities": False}


def test_ranks_that_wait_for_each_other_may_use_one() -> None:
    models, src = [TableModel(VOCAB, 0), TableModel(VOCAB, 1)], pad(draw_sources(3))
    search, others = beam_search(SYMBOLS, beam=2), iter(range(50))
    expected = search.search(Ensemble(models), *src)
    found = search.search(
        Ensemble(models), *src, lambda flag: flag or next(others, None) is not None
    )
    assert all(map(alike, found, expected))


def test_an_empty_ensemble_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a model"):
        Ensemble([])
