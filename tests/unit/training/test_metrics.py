"""Sums over batches become means per token."""

from __future__ import annotations

import math

import pytest
import torch

from ds_seq.moe.output import RoutingStats
from ds_seq.training.metrics import LossSums, load_table
from tests.unit.training.fakes import make_batch


def stats(load: list[float], dropped: float = 0.0) -> RoutingStats:
    """Of a layer that routed each token to one expert."""
    tokens = torch.tensor(sum(load))
    return RoutingStats(torch.tensor(load), torch.tensor(dropped), tokens * 0.5, tokens)


def test_means_are_per_token_not_per_batch() -> None:
    sums = LossSums()
    for tokens, nll in ((1, 3.0), (9, 7.0), (0, 0.0)):
        sums.add({"nll": torch.tensor(nll)}, [], make_batch(tokens))
    figures = sums.reduce()
    assert figures["nll"] == pytest.approx(1.0)
    assert figures["ppl"] == pytest.approx(math.e)
    assert (figures["tokens"], figures["sentences"]) == (10, 2)


def test_a_perplexity_beyond_floating_point_is_no_error() -> None:
    sums = LossSums()
    sums.add({"nll": torch.tensor(1e6)}, [], make_batch(1))
    assert math.isfinite(float(sums.reduce()["ppl"]))  # type: ignore[arg-type]


def test_no_tokens_at_all() -> None:
    sums = LossSums()
    sums.add({"nll": torch.tensor(0.0)}, [], make_batch(0))
    assert sums.reduce()["nll"] == 0.0


def test_routing_is_summed_over_batches_by_layer() -> None:
    sums = LossSums()
    sums.add({}, [stats([3, 1]), stats([0, 4])], make_batch(4))
    sums.add({}, [stats([1, 3]), stats([0, 4], dropped=2)], make_batch(4))
    figures = sums.reduce()
    assert figures["moe/layer0/load"] == pytest.approx([0.5, 0.5])
    assert figures["moe/layer1/load"] == pytest.approx([0.0, 1.0])
    assert figures["moe/layer1/dropped"] == pytest.approx(2 / 8)
    assert figures["moe/layer0/entropy"] == pytest.approx(0.5)
    assert figures["moe/layer0/load_cv"] == pytest.approx(0.0)
    assert figures["moe/layer1/load_cv"] == pytest.approx(1.0)


def test_the_table_of_a_model_with_experts() -> None:
    sums = LossSums()
    sums.add({}, [stats([3, 1]), stats([0, 4], dropped=1)], make_batch(4))
    lines = load_table(sums.reduce()).splitlines()  # type: ignore[arg-type]
    assert len(lines) == 4
    assert lines[2].split() == ["0", "75.0", "25.0", "0.0"]
    assert lines[3].split() == ["1", "0.0", "100.0", "25.0"]


def test_a_dense_model_has_no_table() -> None:
    assert load_table({"loss": 1.0}) == ""
