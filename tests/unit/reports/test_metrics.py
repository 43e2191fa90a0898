"""Sums over batches become means per token."""

from __future__ import annotations

import math

import pytest
import torch

from ds_seq.reports.metrics import LossSums, layer_figures, load_panel, load_table, router_table
from tests.unit.training.fakes import make_batch, make_stats


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
    sums.add({}, [make_stats([3, 1]), make_stats([0, 4])], make_batch(4))
    sums.add({}, [make_stats([1, 3]), make_stats([0, 4], dropped=2)], make_batch(4))
    figures = sums.reduce()
    assert figures["moe/layer0/load"] == pytest.approx([0.5, 0.5])
    assert figures["moe/layer1/load"] == pytest.approx([0.0, 1.0])
    assert figures["moe/layer1/dropped"] == pytest.approx(2 / 8)
    assert figures["moe/layer0/entropy"] == pytest.approx(0.5)
    assert figures["moe/layer0/load_cv"] == pytest.approx(0.0)
    assert figures["moe/layer1/load_cv"] == pytest.approx(1.0)


def test_losses_of_a_layer_are_means_over_its_tokens() -> None:
    sums = LossSums()
    sums.add({}, [make_stats([1, 0], z=3.0), make_stats([1, 0], b=1.0, z=2.0)], make_batch(1))
    sums.add({}, [make_stats([4, 5], z=1.0), make_stats([0, 3], z=2.0, b=5.0)], make_batch(9))
    sums.add({}, [make_stats([0, 0], z=0.0), make_stats([0, 0], b=0.0, z=0.0)], make_batch(0))
    first, second = layer_figures(sums.reduce())
    assert first["z"] == pytest.approx((1 * 3 + 9 * 1) / 10) and "b" not in first
    assert second["b"] == pytest.approx((1 * 1 + 3 * 5) / 4) and second["z"] == pytest.approx(2.0)


def test_layers_may_differ_in_their_number_of_experts() -> None:
    sums = LossSums()
    for _ in range(2):
        stats = [make_stats([1, 3], z=1.0), make_stats([1, 1, 0, 2], y=7.0), make_stats([5])]
        sums.add({"nll": torch.tensor(6.0)}, stats, make_batch(3))
    figures = sums.reduce()
    assert figures["nll"] == pytest.approx(2.0)
    loads = [layer["load"] for layer in layer_figures(figures)]
    assert loads == [[0.25, 0.75], [0.25, 0.25, 0.0, 0.5], [1.0]]
    assert figures["moe/layer1/y"] == pytest.approx(7.0)


def table(*loads: list[float], dropped: float = 0.0) -> dict[str, object]:
    sums = LossSums()
    sums.add({}, [make_stats(load, dropped, router_z=0.5) for load in loads], make_batch(4))
    return dict(sums.reduce())


def test_the_table_of_a_model_with_experts() -> None:
    figures = table([3, 1], [0, 4], dropped=1)
    lines = load_table(figures, ["encoder 1", "decoder 1"]).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["encoder", "1", "25.0", "75.0", "25.0"],
        ["decoder", "1", "25.0", "0.0", "100"],
    ]
    assert load_table(figures).splitlines()[2].split()[0] == "0"


@pytest.mark.parametrize("num_experts", [1, 8, 16, 17, 64, 100])
def test_a_terminal_of_100_columns_reads_the_table(num_experts: int) -> None:
    loads = [[1.0] * 4, [float(expert + 1) for expert in range(num_experts)], [1.0, 0.0]]
    figures = table(*loads)
    names = ["encoder 11", "decoder 9", "decoder 11"]
    text = load_table(figures, names)
    assert all(len(line) <= 100 for line in (text + router_table(figures, names)).splitlines())
    lines = text[text.index("decoder 9") + 9 : text.index("decoder 11")].splitlines()
    cells = [line.split()[2 if line.strip().startswith("from") else 1 :] for line in lines]
    shares = [float(cell) for row in cells for cell in row]
    assert len(shares) == num_experts
    assert shares == pytest.approx([100 * x / sum(loads[1]) for x in loads[1]], abs=0.051)


def test_the_other_table_has_the_losses_of_each_layer() -> None:
    sums = LossSums()
    sums.add({}, [make_stats([3, 1], z=0.25), make_stats([1, 1, 1], budget=0.5)], make_batch(4))
    head, first, second = router_table(sums.reduce()).splitlines()
    assert head.split() == ["layer", "experts", "entropy", "load_cv", "z", "budget"]
    assert first.split()[-1] == "0.2500" and second.split()[-1] == "0.5000"
    assert second[: head.index("budget")].rstrip().endswith("0.0000"), "it has no z"


def test_the_map_shows_shares_over_the_fair_share() -> None:
    panel = load_panel("title", table([3, 1], [1, 1, 1, 1]), ["a", "b"])
    assert panel is not None and panel.layers == ["a", "b"]
    assert [list(row) for row in panel.shares] == [[1.5, 0.5], [1.0] * 4]


def test_a_dense_model_has_no_table_and_no_map() -> None:
    assert load_table({"loss": 1.0}) == router_table({"loss": 1.0}) == ""
    assert load_panel("title", {"loss": 1.0}) is None
