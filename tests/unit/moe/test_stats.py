"""Routing statistics: what is counted, and the figures of their sums."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ds_seq.moe.router import Routing
from ds_seq.moe.stats import packed, report, routing_stats

E = 5


def make_routing(
    num_tokens: int, top_k: int, seed: int = 0, valid: Tensor | None = None
) -> Routing:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(num_tokens, E, generator=generator).softmax(-1)
    weights, experts = probabilities.topk(top_k, dim=-1)
    return Routing(experts, weights, probabilities, {}, valid)


def test_the_load_counts_every_choice_and_dropped_is_what_was_not_carried_out() -> None:
    routing = make_routing(7, 2)
    stats = routing_stats(routing, torch.tensor(9), {})
    assert stats.load.tolist() == [(routing.experts == expert).sum().item() for expert in range(E)]
    assert (stats.dropped.item(), stats.tokens.item()) == (14 - 9, 7)
    expected = -(routing.probabilities * routing.probabilities.log()).sum()
    assert stats.entropy.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_choices_that_do_not_exist_count_nowhere(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(6, 3, generator=generator) < 0.5
    routing = make_routing(6, 3, seed, valid)
    stats = routing_stats(routing, torch.tensor(2), {})
    chosen = routing.experts[valid]
    assert stats.load.tolist() == [(chosen == expert).sum().item() for expert in range(E)]
    assert stats.dropped.item() == valid.sum().item() - 2
    everything = routing_stats(routing._replace(valid=torch.ones_like(valid)), torch.tensor(2), {})
    without = routing_stats(routing._replace(valid=None), torch.tensor(2), {})
    assert all(torch.equal(a, b) for a, b in zip(everything[:4], without[:4], strict=True))


def test_losses_are_detached_and_weigh_as_many_tokens_as_were_routed() -> None:
    loss = torch.tensor(1.5, dtype=torch.bfloat16, requires_grad=True)
    stats = routing_stats(make_routing(4, 1), torch.tensor(4), {"router_z": loss})
    (value,) = stats.losses.values()
    assert value.item() == 6.0 and value.dtype == torch.float32 and not value.requires_grad


def test_no_tokens_at_all() -> None:
    stats = routing_stats(make_routing(0, 2), torch.tensor(0), {"a": torch.tensor(0.0)})
    figures = report(packed(stats), ["a"])
    assert figures.pop("load") == [0.0] * E
    assert set(figures.values()) == {0.0}


def test_sums_over_unequal_forwards_are_means_over_all_tokens() -> None:
    a, b = make_routing(3, 2, 1), make_routing(9, 2, 2)
    whole = Routing(*(torch.cat([x, y]) for x, y in zip(a[:3], b[:3], strict=True)), {})  # type: ignore[arg-type]
    parts = [
        routing_stats(a, torch.tensor(5), {"z": torch.tensor(2.0), "b": torch.tensor(1.0)}),
        routing_stats(b, torch.tensor(16), {"b": torch.tensor(3.0), "z": torch.tensor(6.0)}),
    ]
    total = packed(parts[0]) + packed(parts[1])
    losses = {"b": torch.tensor((3 * 1 + 9 * 3) / 12), "z": torch.tensor((3 * 2 + 9 * 6) / 12)}
    expected = report(packed(routing_stats(whole, torch.tensor(21), losses)), ["b", "z"])
    figures = report(total, ["z", "b"])
    assert set(figures) == {"load", "dropped", "entropy", "load_cv", "b", "z"}
    for key, value in expected.items():
        assert figures[key] == pytest.approx(value, rel=1e-5), key
    assert figures["dropped"] == pytest.approx(3 / 24)


def test_figures_of_a_balanced_and_of_a_collapsed_gate() -> None:
    even = Routing(torch.arange(E)[:, None], torch.ones(E, 1), torch.full((E, E), 1 / E), {})
    figures = report(packed(routing_stats(even, torch.tensor(E), {})))
    assert figures["load"] == pytest.approx([1 / E] * E)
    assert figures["load_cv"] == pytest.approx(0.0, abs=1e-6)
    assert figures["entropy"] == pytest.approx(math.log(E))
    only = torch.zeros(E, 1, dtype=torch.int64)
    collapsed = Routing(only, torch.ones(E, 1), torch.eye(E)[:1].expand(E, E), {})
    figures = report(packed(routing_stats(collapsed, torch.tensor(2), {})))
    assert figures["load"] == [1.0] + [0.0] * (E - 1)
    assert figures["load_cv"] == pytest.approx(math.sqrt(E - 1))
    assert figures["entropy"] == 0.0 and figures["dropped"] == pytest.approx(1 - 2 / E)
