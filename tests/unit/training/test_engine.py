"""The learning rate follows the applied updates; outputs requested from a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch import nn

from ds_seq.errors import UserError
from ds_seq.names import Capture
from ds_seq.training import engine as engine_module
from ds_seq.training.engine import Engine, UpdateSchedule
from tests.batches import batch_of


def make_schedule() -> tuple[UpdateSchedule, torch.optim.Optimizer]:
    parameters = list(nn.Linear(2, 2).parameters())
    groups = [{"params": parameters[:1]}, {"params": parameters[1:]}]
    optimizer = torch.optim.SGD(groups, lr=99.0)
    return UpdateSchedule(optimizer, lambda update: 0.1 * update), optimizer


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_the_first_update_has_the_first_rate() -> None:
    schedule, optimizer = make_schedule()
    assert rates(optimizer) == [0.1, 0.1] == schedule.get_last_lr()


def test_each_step_moves_all_groups() -> None:
    schedule, optimizer = make_schedule()
    schedule.step()
    schedule.step()
    assert schedule.updates == 2
    assert rates(optimizer) == [0.1 * 3] * 2


def test_a_group_has_a_factor_of_the_rate() -> None:
    schedule, optimizer = make_schedule()
    optimizer.param_groups[1]["lr_factor"] = 0.5
    schedule.step()
    assert rates(optimizer) == [0.1 * 2, 0.1] == schedule.get_last_lr()
    schedule.set_factor(0.1)
    assert rates(optimizer) == pytest.approx([0.02, 0.01])


def test_going_to_an_update_is_as_if_it_had_been_reached() -> None:
    schedule, optimizer = make_schedule()
    schedule.set_updates(41)
    assert rates(optimizer) == [0.1 * 42] * 2


class Inner(SimpleNamespace):
    """A DeepSpeed engine that writes down what its model is called with."""

    optimizer, basic_optimizer = object(), object()

    def fp16_enabled(self) -> bool:
        return False

    def gradient_accumulation_steps(self) -> int:
        return 1

    def _backward_epilogue(self) -> None:
        raise AssertionError("there is no backward pass")

    def zero_optimization(self) -> bool:
        return False

    def __call__(self, *inputs: Any) -> Any:
        self.inputs = inputs


@pytest.mark.parametrize("capture", ["none", "hidden"])
def test_a_model_is_handed_the_inputs_and_what_to_capture(
    monkeypatch: pytest.MonkeyPatch, capture: Capture
) -> None:
    inner, tokens = Inner(), torch.tensor([[4, 2, 1]])
    monkeypatch.setattr(engine_module.deepspeed, "initialize", lambda **parts: (inner,))
    engine = Engine(
        nn.Linear(1, 1),
        lambda groups: torch.optim.SGD(groups, lr=0.1),
        [{"params": [nn.Parameter(torch.zeros(1))]}],
        lambda update: 0.1,
        {"gradient_accumulation_steps": 1},
        expert_parallel=1,
        sparse_clip=False,
        capture=capture,
    )
    batch = batch_of(tokens, tokens)
    engine(batch)
    inputs, asked = inner.inputs
    assert inputs is batch.inputs and asked == capture


def test_what_deepspeed_refuses_is_one_line_each() -> None:
    with pytest.raises(UserError) as caught, engine_module.one_line_each():
        DeepSpeedZeroConfig(reduce_bucket_size=0, offload_param={"device": "moon"})
    first, second = str(caught.value).splitlines()
    assert first == "the DeepSpeed JSON: reduce_bucket_size: Input should be greater than 0"
    assert second.startswith("the DeepSpeed JSON: offload_param.device: Input should be 'none'")
