"""The learning rate follows the updates that were applied."""

from __future__ import annotations

import torch
from torch import nn

from ds_seq.training.engine import UpdateSchedule


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


def test_going_to_an_update_is_as_if_it_had_been_reached() -> None:
    schedule, optimizer = make_schedule()
    schedule.set_updates(41)
    assert rates(optimizer) == [0.1 * 42] * 2
