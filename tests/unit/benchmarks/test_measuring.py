"""How the benchmarks measure: turns, memory, classes of operators, and children of all kinds."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import nn

from benchmarks import common
from benchmarks.experiments import Recipe
from benchmarks.profiled import Allocation, kind_of, peak_activation_bytes, peak_bytes
from benchmarks.turns import Rounds, Turn, take_turns
from benchmarks.worker import Worker

CHILD = """
import os
from benchmarks.worker import Channel, Stopwatch, Validation
channel = Channel()
if os.environ["RANK"] == "0":
    channel.ready(7, "child 1.0")
    while (command := channel.command()) is not None:
        if command.verb == "run":
            channel.done(Stopwatch().block(command.number, 10 * command.number, 0.5))
        elif command.verb == "validate":
            channel.done(Validation(2.0, 30, 1.0, 0.25, bleu=12.5))
        else:
            channel.done()
else:
    open(os.environ["SIGN"], "w").close()
    assert not channel.command()  # there are no commands
"""


def test_all_sides_have_as_many_turns_and_the_order_rotates() -> None:
    calls: list[str] = []
    sides = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    rounds = take_turns(sides, rounds=3, turn_seconds=0.0)
    assert rounds.count == 3
    assert "".join(calls[-9:]) == "abcbcacab"


def test_a_slower_side_shows_in_its_ratio() -> None:
    def wait(seconds: float) -> None:
        time.sleep(seconds)

    sides = {"slow": lambda: wait(0.05), "fast": lambda: wait(0.005)}
    rounds = take_turns(sides, rounds=3, turn_seconds=0.01)
    assert median(rounds.ratios("slow", "fast")) > 1.5  # a busy machine may hold up one round
    assert rounds.ratios("fast", "fast") == [1.0, 1.0, 1.0]
    assert rounds.busy(threads=1) < 0.9  # sleeping is not running


def test_no_round_begins_when_the_time_is_over_but_two_always_do() -> None:
    rounds = take_turns({"a": lambda: time.sleep(0.01)}, 50, seconds=0.0, turn_seconds=0.0)
    assert rounds.count == 2


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that is ten times as slow in one round changes no ratio."""
    turns = {
        "a": [Turn(1.0, 1.0), Turn(10.0, 10.0)],
        "b": [Turn(2.0, 2.0), Turn(20.0, 20.0)],
    }
    assert Rounds(turns).ratios("b", "a") == [2.0, 2.0]


def test_the_peak_is_what_is_held_at_one_time() -> None:
    taken = [Allocation(1, 100), Allocation(2, 50), Allocation(1, -100), Allocation(3, 80)]
    assert peak_bytes(taken, kept=set()) == 150
    assert peak_bytes([*taken, Allocation(9, -70)], kept=set()) == 150  # taken before
    assert peak_bytes(taken, kept={2}) == 100


def test_only_the_last_block_at_an_address_is_a_gradient() -> None:
    """An address is used again: an activation lay where a gradient lies in the end."""
    taken = [Allocation(1, 100), Allocation(1, -100), Allocation(1, 30)]
    assert peak_bytes(taken, kept={1}) == 100
    assert peak_bytes([*taken, Allocation(1, -30)], kept={1}) == 100


def test_activations_are_counted_and_gradients_of_parameters_are_not() -> None:
    """Twice the rows are twice the activations; unused parameters cost nothing."""
    model = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 8))

    def peak(rows: int) -> int:
        model.zero_grad()
        x = torch.randn(rows, 8)
        return peak_activation_bytes(lambda: model(x).sum().backward(), model.parameters())

    small, large = peak(512), peak(1024)
    assert large / small == pytest.approx(2.0, rel=0.1)
    hidden = 1024 * 256 * 4  # the outputs of the first map and of relu are held together
    assert 2 * hidden <= large <= 4 * hidden


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::addmm", "matmul"),
        ("mkldnn::_linear_pointwise", "matmul"),
        ("aten::_grouped_mm", "matmul"),
        ("aten::index_select", "movement, sorting"),
        ("aten::copy_", "movement, sorting"),
        ("aten::_fused_adam_", "optimizer"),
        ("Optimizer.step#Adam.step", "optimizer"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::mul", "the rest"),
        ("aten::mean", "the rest"),
    ],
)
def test_operators_have_a_class(operator: str, kind: str) -> None:
    assert kind_of(operator) == kind


def test_a_child_of_two_processes_answers_once(tmp_path: Path) -> None:
    sign, root = tmp_path / "sign", str(Path(common.__file__).parent.parent)
    ranks = [{"RANK": str(rank), "SIGN": str(sign), "PYTHONPATH": root} for rank in range(2)]
    command = [sys.executable, "-c", CHILD]
    with Worker("child", command, tmp_path / "log", ranks[0], ranks[1:]) as child:
        assert child.run(2).target_tokens == 20
        validation = child.validate()
        assert (validation.speed, validation.loss, validation.bleu) == (15.0, 0.25, 12.5)
        child.save()
        assert child.run(3).target_tokens == 30
    assert sign.exists()
    assert "Error" not in (tmp_path / "log").read_text(encoding="utf-8")


def test_two_systems_of_a_recipe_differ_in_the_experts_alone(tmp_path: Path) -> None:
    recipe = Recipe(
        text=tmp_path,
        shards=tmp_path,
        vocab_size=100,
        model={"d_model": 8},
        train={"max_tokens": 50},
        optimizer={"name": "adam", "lr": math.pi},
        scheduler={"name": "inverse_sqrt"},
    )
    dense = recipe.experiment(tmp_path / "run")
    moe = recipe.experiment(tmp_path / "run", {"num_experts": 8})
    assert moe["model"].pop("moe") == {"num_experts": 8}
    assert moe["criterion"].pop("loss_weights").keys() == {"load_balance", "router_z"}
    assert moe["criterion"]["base"] == dense.pop("criterion")
    moe.pop("criterion")
    assert moe == dense
