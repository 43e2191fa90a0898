"""Without ZeRO, half precision starts and scales its loss like the other stages."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ds_seq.models.build import build_seq2seq
from ds_seq.training.state import FullState
from tests.distributed import spine
from tests.distributed.harness import run_distributed

MODEL = spine.small_model()
DENSE = "decoder.layers.0.cross_attention.output.weight"
FP16 = {
    "fp16": {"initial_scale_power": 6, "hysteresis": 2},
    "data_types": {"grad_accum_dtype": "fp16"},  # as in stage 0; others default to fp32
}
LAYOUTS = [("bf16", 0), ("fp16", 0), ("fp16", 1), ("fp16", 2), ("fp16", 3)]


class Start(NamedTuple):
    """The first updates of an engine with AdamW."""

    initial: dict[str, Tensor]
    scales: list[float]
    """Loss scales before and after two updates that overflow, and two that do not."""
    steps: float
    """The optimizer's count after them."""
    weights: dict[str, Tensor]


def _start(precision: str, stage: int) -> Start:
    options: dict[str, Any] = {"sections": FP16} if precision == "fp16" else {}
    engine = spine.make_engine(stage, 1, precision=precision, model=MODEL, decay=0.5, **options)
    initial, scales = spine.all_weights(engine), [engine.loss_scale]
    hook = engine.module.get_parameter(DENSE).register_hook(lambda grad: grad * torch.inf)
    for update in range(4):
        if update == 2:
            hook.remove()
        spine.train(engine, range(update, update + 1))
        scales.append(engine.loss_scale)
    steps = FullState(engine.deepspeed).steps()
    return Start(initial, scales, steps, spine.all_weights(engine))


def _starts() -> dict[tuple[str, int], Start]:
    return {layout: _start(*layout) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def starts() -> dict[tuple[str, int], Start]:
    """By layout."""
    [found] = run_distributed(_starts, 1)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_learned_before_the_first_update(
    layout: tuple[str, int], starts: dict[tuple[str, int], Start]
) -> None:
    found = starts[layout]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[layout[0]]
    for name, value in build_seq2seq(MODEL, spine.VOCAB, 1, 0, seed=5).named_parameters():
        assert torch.equal(found.initial[name], value.to(dtype).float()), name
    assert found.steps == 2.0


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_the_loss_scale_waits_for_the_hysteresis(
    layout: tuple[str, int], starts: dict[tuple[str, int], Start]
) -> None:
    assert starts[layout].scales == [64.0, 64.0, 32.0, 32.0, 32.0]


def test_the_first_updates_are_those_of_the_other_stages(
    starts: dict[tuple[str, int], Start],
) -> None:
    reference = starts["fp16", 1]
    for name, value in starts["fp16", 0].weights.items():
        # an update is about the learning rate, 0.01
        torch.testing.assert_close(value, reference.weights[name], rtol=0, atol=1e-3, msg=name)
