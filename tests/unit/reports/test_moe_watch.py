"""The watch over collapsing layers: when it speaks, and what it says."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from ds_seq.config.model import TransformerConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.reports.moe_watch import MoeWatch, layer_names
from tests.batches import score


def load(*layers: list[float]) -> dict[str, object]:
    """Figures of a log interval, with shares that add up to 1."""
    return {
        f"moe/layer{layer}/load": [part / sum(parts) for part in parts]
        for layer, parts in enumerate(layers)
    }


BALANCED, COLLAPSED = [1.0, 1.0, 1.0], [1.0, 0.004, 1.0]  # the fair share is 0.668


def test_a_starved_expert_is_reported_once_after_the_set_number_of_updates() -> None:
    watch = MoeWatch(["encoder 1"], patience=500)
    reports = [watch.observe(load(COLLAPSED), 100) for _ in range(20)]
    assert [bool(lines) for lines in reports] == [False] * 4 + [True] + [False] * 15
    (line,) = reports[4]
    assert "encoder 1" in line and "expert 1 got less than 1%" in line and "500 updates" in line
    for option in ("criterion.loss_weights.load_balance", "model.moe.noise", "model.moe.router"):
        assert option in line


def test_the_options_it_names_exist() -> None:
    moe = {"num_experts": 2, "noise": "jitter"}
    for router in ("softmax", "sigmoid"):
        TransformerConfig.model_validate({"moe": {**moe, "router": router}})


@pytest.mark.parametrize(("share", "starved"), [(0.0099, True), (0.0101, False)])
def test_starved_is_less_than_a_hundredth_of_the_fair_share(share: float, starved: bool) -> None:
    num_experts = 40
    rest = (num_experts - share) / (num_experts - 1)
    watch = MoeWatch(patience=1)
    assert bool(watch.observe(load([share] + [rest] * (num_experts - 1)), 1)) == starved


def test_a_few_tokens_between_start_the_count_anew() -> None:
    watch = MoeWatch(patience=300)
    for _ in range(5):
        assert not watch.observe(load(COLLAPSED), 200)
        assert not watch.observe(load(BALANCED), 1)


def test_intervals_in_which_experts_starve_in_turn_are_no_collapse() -> None:
    watch = MoeWatch(patience=300)
    for turn in range(12):
        assert not watch.observe(load([0.0 if turn % 3 == i else 1.0 for i in range(3)]), 200)


def test_a_layer_is_reported_again_only_after_recovery() -> None:
    watch = MoeWatch(patience=10)
    assert len(watch.observe(load([1.0, 0.0, 0.0]), 10)) == 1
    assert not watch.observe(load([1.0, 1.0, 0.0]), 10), "one of two is still starved"
    assert not watch.observe(load([1.0, 0.0, 1.0]), 5), "and now the other one"
    assert not watch.observe(load([1.0, 0.0, 0.0]), 10)
    assert watch.observe(load(BALANCED), 10) == ["layer 0: all experts get tokens again"]
    assert not watch.observe(load(BALANCED), 10)
    assert len(watch.observe(load([1.0, 0.0, 0.0]), 10)) == 1


def test_layers_are_watched_one_by_one_with_their_own_numbers_of_experts() -> None:
    watch = MoeWatch(["encoder 1", "decoder 3"], patience=20)
    assert not watch.observe(load([1.0] * 4, [1.0] * 30 + [0.0] * 10), 10)
    (line,) = watch.observe(load([0.0] + [1.0] * 3, [1.0] * 30 + [0.0] * 10), 10)
    assert "decoder 3 collapses: experts 30, 31, " in line and "37 and 2 more" in line
    (line,) = watch.observe(load([0.0] + [1.0] * 3, [1.0] * 30 + [0.0] * 10), 10)
    assert "encoder 1 collapses: expert 0 " in line


def test_a_dense_model_has_nothing_to_watch() -> None:
    assert MoeWatch().observe({"loss": 1.0}, 10_000) == []


@pytest.mark.parametrize("split", range(1, 8))
def test_a_resumed_run_counts_on(split: int) -> None:
    intervals = [load(COLLAPSED)] * 3 + [load(BALANCED)] + [load(COLLAPSED)] * 4
    whole = MoeWatch(patience=30)
    expected = [whole.observe(figures, 10) for figures in intervals]
    assert sum(map(len, expected)) == 3
    first, second = MoeWatch(patience=30), MoeWatch(patience=30)
    reports = [first.observe(figures, 10) for figures in intervals[:split]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert reports + [second.observe(figures, 10) for figures in intervals[split:]] == expected


def test_layers_are_called_by_stack_and_number() -> None:
    sizes = {"d_model": 8, "ffn_dim": 8, "num_heads": 2, "encoder_layers": 4, "decoder_layers": 3}
    config = TransformerConfig.model_validate({**sizes, "moe": {"num_experts": 2}})
    model = build_seq2seq(config, 11, 1, 0, seed=1, pad_id=1)
    assert layer_names(model) == ["encoder 1", "encoder 3", "decoder 1"]
    assert layer_names(nn.Sequential(model.encoder.layers[1].feed_forward)) == ["0"]
    assert layer_names(nn.Linear(2, 2)) == []


def test_each_call_of_a_layer_has_a_name() -> None:
    sizes = {"d_model": 8, "ffn_dim": 8, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 2}
    config = TransformerConfig.model_validate({**sizes, "moe": {"num_experts": 2}})
    model = build_seq2seq(config, 11, 1, 0, seed=1, pad_id=1)
    dense, sparse = model.encoder.layers
    model.encoder.layers = nn.ModuleList([sparse, dense, sparse, sparse])
    names = ["encoder 0", "encoder 0 (call 2)", "encoder 0 (call 3)", "decoder 1"]
    assert layer_names(model) == names
    output = score(model, *2 * (torch.tensor([[5, 6, 2]]),))
    assert len(output.moe_stats) == len(names)
