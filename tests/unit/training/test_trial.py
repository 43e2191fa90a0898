"""The size of batches by trial: no room, no gain, the end of the data; nothing is changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ds_seq.config.load import read_experiment
from ds_seq.errors import UserError
from ds_seq.training import trial
from ds_seq.training.trial import find_batch_size, with_batch_size

LENGTHS = np.full((1000, 2), 10)


class _Model(nn.Module):
    """Has room for a number of sentences; each takes a second."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.room, self.sizes = room, list[int]()

    def forward(self, size: int, capture: str) -> Tensor:
        self.sizes.append(size)
        if size > self.room:
            raise MemoryError
        return self.weight.sum() * size


class _Criterion:
    """Passes the output on."""

    capture, training, num_passes, prepares = "none", True, 1, False

    def train(self, mode: bool) -> None:
        self.training = mode

    def __call__(self, output: Tensor, batch: Any) -> Any:
        assert not self.training
        return SimpleNamespace(total=output)


def _find(
    monkeypatch: pytest.MonkeyPatch, room: int, seconds: Any, cap: int | None = None
) -> tuple[int, _Model]:
    model, criterion = _Model(room), _Criterion()
    clock = [0.0]

    def monotonic() -> float:  # each forward and backward reads it before and after
        clock[0] += seconds(model.sizes[-1]) if model.sizes else 0.0
        return clock[0]

    monkeypatch.setattr(trial.time, "monotonic", monotonic)
    engine: Any = SimpleNamespace(
        module=model, device=torch.device("cpu"), forward_is_collective=False
    )
    task: Any = SimpleNamespace(
        collate=lambda dataset, indices: SimpleNamespace(
            to=lambda device: SimpleNamespace(inputs=len(indices))
        )
    )
    dataset: Any = SimpleNamespace(lengths=LENGTHS)
    found = find_batch_size(engine, criterion, task, dataset, cap)  # type: ignore[arg-type]
    assert criterion.training and model.weight.grad is None
    return found, model


def test_the_last_size_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    found, model = _find(monkeypatch, room=250, seconds=lambda size: 1.0)
    assert found == 2048 and max(model.sizes) == 409


def test_the_last_size_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = _find(monkeypatch, room=9999, seconds=lambda size: 1.0 if size < 110 else size / 60)
    assert found == 1024


def test_no_larger_than_the_data_or_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _find(monkeypatch, 9999, lambda size: 1.0)[0] == 16384
    assert _find(monkeypatch, 9999, lambda size: 1.0, cap=70)[0] == 1024


def test_no_room_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="auto: out of memory with the longest sentences"):
        _find(monkeypatch, 3, lambda size: 1.0)


def test_ranks_that_need_each_other_are_refused() -> None:
    engine: Any = SimpleNamespace(forward_is_collective=True)
    nothing: Any = None
    with pytest.raises(UserError, match="auto does not work where ranks share"):
        find_batch_size(engine, nothing, nothing, nothing, None)


def test_a_run_that_resumes_keeps_its_number() -> None:
    nothing: Any = None
    data = {"source_lang": "en", "target_lang": "de", "dir": "d"}
    content = {"name": "x", "data": data, "validation": {"metrics": [], "best": "loss"}}
    config = read_experiment(content, ["train.max_tokens=auto"])
    resumed = with_batch_size(config, nothing, nothing, nothing, nothing, {"max_tokens": 777})
    assert resumed.train.max_tokens == 777
    plain = read_experiment(content)
    assert with_batch_size(plain, nothing, nothing, nothing, nothing, None) is plain
