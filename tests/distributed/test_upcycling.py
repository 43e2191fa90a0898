"""A model upcycled from a dense one is the same, and learns the same, wherever its experts are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ds_seq.models.build import build_seq2seq
from ds_seq.surgery.upcycle import transfer
from ds_seq.weights.fill import model_tensors
from ds_seq.weights.source import TensorFile
from tests.distributed import spine
from tests.distributed.harness import run_distributed

NOISE = 0.1


def _train(file: Path, expert_parallel: int, stage: int) -> Any:
    """Weights at the start, two updates, and weights after them."""
    engine = spine.make_engine(
        stage,
        expert_parallel,
        optimizer=spine.SGD,
        prepare=lambda net: transfer(net, TensorFile(file), NOISE),
    )
    start = spine.all_weights(engine)
    return start, spine.train(engine, range(2)), spine.all_weights(engine)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a dense model."""
    file = tmp_path_factory.mktemp("dense") / "model.safetensors"
    model = build_seq2seq(spine.model_config(moe=None), spine.VOCAB, 1, 0, seed=3)
    tensors = {name: value.detach() + 0.01 for name, value in model_tensors(model)}
    save_file(tensors, str(file))
    return file


STAGES = (1, 3)


def _train_all(file: Path) -> dict[int, Any]:
    return {stage: _train(file, 2, stage) for stage in STAGES}


@pytest.fixture(scope="module")
def together(dense: Path) -> dict[int, Any]:
    """What two processes make of it, by stage."""
    found: dict[int, Any] = run_distributed(_train_all, 2, dense)[0]
    return found


@pytest.fixture(scope="module")
def alone(dense: Path) -> Any:
    """What one process makes of it, without ZeRO."""
    return run_distributed(_train, 1, dense, 1, 0)[0]


@pytest.mark.parametrize("stage", STAGES)
def test_experts_on_two_ranks_are_upcycled_as_on_one(
    together: dict[int, Any], alone: Any, stage: int
) -> None:
    start, steps, end = alone
    our_start, our_steps, our_end = together[stage]
    assert our_start.keys() == start.keys()
    for name, value in start.items():
        assert torch.equal(our_start[name], value), name
    torch.testing.assert_close(torch.tensor(our_steps), torch.tensor(steps), rtol=1e-4, atol=1e-5)
    for name, value in end.items():
        torch.testing.assert_close(our_end[name], value, rtol=1e-4, atol=1e-5, msg=name)
    experts = start["encoder.layers.1.feed_forward.experts.w1"]
    assert not torch.allclose(experts[0], experts[1]), "noise tells experts apart"
