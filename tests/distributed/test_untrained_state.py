"""Buffers and parameters that no optimizer touches travel with a checkpoint in every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ds_seq import distributed
from ds_seq.models.build import build_seq2seq
from ds_seq.runs.formats.ds_seq import find_checkpoint
from ds_seq.training.checkpoint import CheckpointStore
from ds_seq.training.engine import Engine
from ds_seq.training.state import WEIGHT, FullState
from ds_seq.weights.fill import load_weights
from tests.distributed import spine
from tests.distributed.harness import run_distributed
from tests.saving import save_and_wait

FROZEN = ("encoder.layers.0.feed_forward.up.weight", "encoder.layers.1.feed_forward.experts.w2")
STEPS = [2**40 + 1, -3, 0, 7]  # no float of 32 bits holds the first
SLICED = {"stage3_param_persistence_threshold": 0}  # stage 3 leaves small parameters whole


def _prepare(net: nn.Module) -> None:
    """A counter in one layer, and two parameters that are not trained."""
    layer = net.get_submodule("encoder.layers.1.feed_forward")
    layer.register_buffer("steps", torch.zeros(4, dtype=torch.int64))
    for name in FROZEN:
        net.get_parameter(name).requires_grad_(False)


def _engine(stage: int, expert_parallel: int, options: dict[str, Any]) -> Engine:
    zero = SLICED if stage == 3 else {}
    return spine.make_engine(stage, expert_parallel, prepare=_prepare, zero=zero, **options)


def _untrained(engine: Engine) -> dict[str, Tensor]:
    """The counter and the frozen parameters, as this rank sees them."""
    state, module = FullState(engine.deepspeed), engine.module
    frozen = {name: state.read(module.get_parameter(name), WEIGHT) for name in FROZEN}
    steps = module.get_buffer("encoder.layers.1.feed_forward.steps")
    values = {**frozen, "steps": steps}
    return {name: value.clone() for name, value in values.items() if value is not None}


def _save(folder: Path, stage: int, spread: int, options: dict[str, Any]) -> Any:
    engine = _engine(stage, spread, options)
    engine.module.get_buffer("encoder.layers.1.feed_forward.steps").copy_(torch.tensor(STEPS))
    if stage == 3:
        partitioned: Any = engine.module.get_parameter(FROZEN[0])
        assert partitioned.numel() == 0, "the test means to save a partitioned parameter"
    spine.train(engine, range(2))
    save_and_wait(CheckpointStore(folder / "checkpoints", 1, 1, True), engine, 2, {})
    return spine.train(engine, range(2, 4)), _untrained(engine)


def _go_on(folder: Path, stage: int, spread: int, options: dict[str, Any]) -> Any:
    path = find_checkpoint(folder, "last")
    engine = _engine(stage, spread, {**options, "checkpoint": path})
    return spine.train(engine, range(2, 4)), _untrained(engine)


class Case(NamedTuple):
    """Who writes a checkpoint and who reads it: (ranks, expert parallel, stage) each."""

    written: tuple[int, int, int]
    read: tuple[int, int, int]
    precision: str


CASES = (
    Case((2, 2, 3), (1, 1, 0), "fp32"),
    Case((2, 1, 3), (2, 2, 1), "fp32"),
    Case((2, 2, 0), (2, 2, 3), "fp32"),
    Case((2, 2, 3), (2, 1, 2), "bf16"),
)


def _save_all(folder: Path) -> list[Any]:
    found = []
    for index, case in enumerate(CASES):
        _, spread, stage = case.written
        options = {"precision": case.precision}
        found.append(_save(folder / str(index), stage, spread, options))
    return found


def _go_on_all(folder: Path) -> dict[int, Any]:
    """States of the cases that are read by this number of ranks."""
    found = {}
    for index, case in enumerate(CASES):
        world, spread, stage = case.read
        if world == distributed.world_size():
            options = {"precision": case.precision}
            found[index] = _go_on(folder / str(index), stage, spread, options)
    return found


class Travelled(NamedTuple):
    """What came of the cases."""

    folder: Path
    """With a folder for each, by number."""
    written: list[list[Any]]
    """By rank and case, what the training that wrote it went on to."""
    read: list[list[Any]]
    """Results of resuming from disk, by case and rank."""


@pytest.fixture(scope="module")
def traveled(tmp_path_factory: pytest.TempPathFactory) -> Travelled:
    """All cases, by processes that start once to write and once to read."""
    folder = tmp_path_factory.mktemp("traveled")
    for index in range(len(CASES)):
        (folder / str(index)).mkdir()
    written = run_distributed(_save_all, 2, folder)
    by_rank = [*run_distributed(_go_on_all, 1, folder), *run_distributed(_go_on_all, 2, folder)]
    read = [
        [answers[index] for answers in by_rank if index in answers] for index in range(len(CASES))
    ]
    return Travelled(folder, written, read)


def _on_disk(folder: Path) -> nn.Module:
    whole = build_seq2seq(spine.model_config(), spine.VOCAB, 1, 0, seed=99)
    _prepare(whole)
    load_weights(whole, find_checkpoint(folder, "last"))
    return whole


@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(case) for case in CASES])
def test_untrained_state_travels_exactly(traveled: Travelled, index: int) -> None:
    precision = CASES[index].precision
    saved = _on_disk(traveled.folder / str(index))
    original = build_seq2seq(spine.model_config(), spine.VOCAB, 1, 0, seed=5)
    assert saved.get_buffer("encoder.layers.1.feed_forward.steps").tolist() == STEPS
    for name in FROZEN:
        value = original.get_parameter(name)
        rounded = value.bfloat16().float() if precision == "bf16" else value
        assert torch.equal(saved.get_parameter(name), rounded), name

    world, spread, _ = CASES[index].read
    resumed = traveled.read[index]
    assert len(resumed) == world
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    expected = traveled.written[0][index][0]
    for (loss, _, _), (want, _, _) in zip(resumed[0][0], expected, strict=True):
        assert loss == pytest.approx(want, rel=tolerance)
    for rank, (_, values) in enumerate(resumed):
        assert values["steps"].tolist() == STEPS
        assert values["steps"].dtype == torch.int64
        experts = values[FROZEN[1]]
        first = rank % spread * len(experts)
        for ours, name in ((values[FROZEN[0]], FROZEN[0]), (experts, FROZEN[1])):
            want = saved.get_parameter(name)
            want = want[first : first + len(experts)] if name == FROZEN[1] else want
            assert torch.equal(ours, want), name
