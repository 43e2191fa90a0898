"""Gradients and weights that are not finite are found in every layout and precision alike."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ds_seq import distributed
from ds_seq.training.finite import SkippedUpdates, gradients_not_finite, weights_not_finite
from tests.distributed import spine
from tests.distributed.harness import run_distributed

EXPERT = "encoder.layers.0.feed_forward.experts.w1"
DENSE = "decoder.layers.0.cross_attention.output.weight"
MODEL = spine.small_model()
LAYOUTS: dict[str, dict[str, Any]] = {
    f"{precision}-{stage}": {"stage": stage, "precision": precision}
    for precision in ("fp32", "bf16")
    for stage in range(4)
}
FIXED = {"fp16": {"loss_scale": 64}}
LAYOUTS["fp16-fixed"] = {"stage": 2, "precision": "fp16", "sections": FIXED}
SUMS = {"data_types": {"grad_accum_dtype": "bf16"}}  # fp32, the default, has another wrapper
LAYOUTS["bf16-1-bf16-sums"] = {"stage": 1, "precision": "bf16", "sections": SUMS}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
LAYOUTS["bf16-2-offload"] = {"stage": 2, "precision": "bf16", "zero": OFFLOAD}
SPREAD = ("fp32-0", "fp32-1", "bf16-2", "bf16-3")


def _spoil(gradient: Tensor) -> Tensor:
    return gradient * math.nan


def _a_bad_batch_and_a_good_one(options: dict[str, Any]) -> dict[str, Any]:
    engine = spine.make_engine(expert_parallel=1, model=MODEL, clip=1.0, **options)
    before = spine.all_weights(engine)
    hook = engine.module.get_parameter(DENSE).register_hook(_spoil)
    names: list[str] = []
    look = lambda: names.extend(gradients_not_finite(engine.module))  # noqa: E731
    [(_, norm, applied)] = spine.train(engine, range(1), look)
    after = spine.all_weights(engine)
    hook.remove()
    [(_, good_norm, good)] = spine.train(engine, range(1, 2))
    return {
        "bad": (norm, applied),
        "names": names,
        "unchanged": all(torch.equal(after[name], value) for name, value in before.items()),
        "good": (math.isfinite(good_norm), good),
    }


def _alone() -> dict[str, dict[str, Any]]:
    return {name: _a_bad_batch_and_a_good_one(LAYOUTS[name]) for name in LAYOUTS}


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    """What each layout did in one process."""
    [found] = run_distributed(_alone, 1, timeout=120.0)
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_bad_batch_is_skipped(name: str, alone: dict[str, dict[str, Any]]) -> None:
    found = alone[name]
    assert found["bad"] == (math.inf, False)
    assert found["names"] == [DENSE]
    assert found["unchanged"], "a skipped update changes no weight"
    assert found["good"] == (True, True)


def _nan_in_an_expert(name: str) -> list[str]:
    def spoil(net: nn.Module) -> None:
        if distributed.rank() == 1:
            net.get_parameter(EXPERT).data[1, 0, 3] = math.nan

    options = LAYOUTS[name]
    engine = spine.make_engine(expert_parallel=2, model=MODEL, prepare=spoil, **options)
    assert [applied for _, _, applied in spine.train(engine, range(2))] == [False, False]
    return weights_not_finite(engine.module)


def _nan_in_experts() -> dict[str, list[str]]:
    return {name: _nan_in_an_expert(name) for name in SPREAD}


def test_all_ranks_find_what_is_not_finite_on_one() -> None:
    first, second = run_distributed(_nan_in_experts, 2)
    for name in SPREAD:
        assert first[name] == second[name] == [EXPERT], name


def test_few_skips_among_many_updates_are_no_reason_to_stop() -> None:
    skipped = SkippedUpdates(2, 20)
    for update in range(100):
        skipped.note(update % 10 == 0)
        assert not skipped.too_many
    skipped.note(True)
    skipped.note(True)
    assert skipped.too_many and str(skipped) == "3 of the last 20 updates"


def test_skips_are_counted_across_a_resume() -> None:
    first, second = SkippedUpdates(2, 5), SkippedUpdates(2, 5)
    for skipped in (True, False, False, True, False, True):
        first.note(skipped)
    second.load_state(first.state())
    assert str(second) == str(first) == "2 of the last 5 updates"
    for skipped in (False, True):
        first.note(skipped)
        second.note(skipped)
        assert second.state() == first.state()
    assert second.too_many is first.too_many is True
