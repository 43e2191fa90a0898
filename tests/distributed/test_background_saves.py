"""A checkpoint that is written while training goes on is the one that a waiting run writes."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ds_seq import distributed
from ds_seq.config.optim import AdamConfig
from ds_seq.distributed.exchange import Exchange
from ds_seq.errors import EXIT_RANK_LOST, EXIT_USER_ERROR, UserError
from ds_seq.training import background
from ds_seq.training.checkpoint import CheckpointStore
from ds_seq.training.checkpoint_folder import repair
from ds_seq.training.engine import Engine
from ds_seq.training.saves import Saves
from ds_seq.training.slices import HostMemory, Mail
from ds_seq.training.snapshot import take
from ds_seq.training.state import WEIGHT, FullState
from ds_seq.weights.fill import expert_offsets, persistent_buffers
from ds_seq.weights.source import expert_key
from tests.distributed import spine
from tests.distributed.harness import run_distributed
from tests.distributed.killable import ranks
from tests.saving import save_and_wait
from tests.values import progress_at


def _engine(stage: int, expert_parallel: int) -> Engine:
    options: dict[str, Any] = {"optimizer": AdamConfig(lr=0.01), "model": spine.small_model()}
    return spine.make_engine(stage, expert_parallel, **options)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _both_ways(root: Path, layouts: Sequence[tuple[int, int]]) -> list[tuple[bool, bool]]:
    """For each layout: whether training overtook the writing, and whether the files are equal."""
    write, may_write, found = background.save_tensors, threading.Event(), []

    def wait_and_write(*arguments: Any) -> None:
        assert may_write.wait(30)
        write(*arguments)

    for stage, expert_parallel in layouts:
        folder = root / f"zero{stage}-ep{expert_parallel}"
        engine = _engine(stage, expert_parallel)
        stores = [CheckpointStore(folder / name, 2, 1, True) for name in ("sync", "background")]
        overtook = True
        for update in (2, 4):  # the second time, the copies are in the memory of the first
            spine.train(engine, range(update - 2, update))
            save_and_wait(stores[0], engine, update, progress_at(update), 1.0)
            may_write.clear()
            background.save_tensors = wait_and_write
            stores[1].start(engine, update, progress_at(update), 1.0, {}, in_background=True)
            spine.train(engine, range(update, update + 1))
            final = folder / "background" / f"update_{update:08d}"
            overtook &= not final.exists()
            may_write.set()
            assert stores[1].finish() is None
            background.save_tensors = write
            distributed.barrier()
        names = [f"update_{update:08d}" for update in (2, 4)]
        same = all(
            _contents(folder / "sync" / name) == _contents(folder / "background" / name)
            for name in names
        )
        found.append((overtook, same and stores[0].index == stores[1].index))
    return found


@pytest.mark.parametrize(
    "layouts",
    [[(0, 1), (1, 2), (3, 2)], pytest.param([(2, 1), (2, 2), (3, 1)], marks=pytest.mark.slow)],
)
def test_the_same_bytes_in_every_layout(tmp_path: Path, layouts: list[tuple[int, int]]) -> None:
    """Stage of ZeRO and expert parallel of each."""
    assert run_distributed(_both_ways, 2, tmp_path, layouts) == [[(True, True)] * len(layouts)] * 2


def _freeze_some(net: nn.Module) -> None:
    for number, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(number % 7 != 3)


def _gathered(engine: Engine) -> dict[str, Tensor]:
    """Copies of all tensors of a checkpoint, as DeepSpeed itself gathers them."""
    state, offsets = FullState(engine.deepspeed), expert_offsets(engine.module)
    tensors: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        for key in (WEIGHT, *state.state_names()) if parameter.requires_grad else (WEIGHT,):
            slot = name if key == WEIGHT else f"{key}/{name}"
            value = state.read(parameter, key)
            assert value is not None
            if name in offsets:
                numbered = enumerate(value.clone(), offsets[name])
                tensors |= {expert_key(slot, number): row for number, row in numbered}
            else:
                tensors[slot] = value.clone()
    return tensors


Cut = tuple[int, int, str]


def _assembled(cuts: Sequence[Cut]) -> list[tuple[list[str], list[str], bool]]:
    """For each layout: names of all tensors here, of those written here, and whether they agree."""
    found = []
    for stage, spread, precision in cuts:
        options: dict[str, Any] = {"model": spine.small_model(), "prepare": _freeze_some}
        options["sections"] = {"fp16": {"initial_scale_power": 4}}
        options["micro_batches"] = max(spine.FEW, distributed.world_size())
        engine = spine.make_engine(stage, spread, precision=precision, **options)
        spine.train(engine, range(2))
        whole = _gathered(engine)
        exchange = Exchange()
        snapshot = take(engine, {}, {}, HostMemory(False), exchange)
        spine.train(engine, range(2, 3))  # changes nothing that has been copied
        snapshot.assemble(exchange)
        buffers = dict(persistent_buffers(engine.module))
        own = {**snapshot.tensors["weights"], **snapshot.tensors["optimizer"]}
        own = {name: value for name, value in own.items() if name not in buffers}
        agree = all(torch.equal(value, whole[name]) for name, value in own.items())
        found.append((sorted(whole), sorted(own), agree))
    return found


@pytest.mark.parametrize(
    ("num_ranks", "cuts"),
    [
        (4, [(1, 2, "fp32"), (2, 1, "fp16"), (3, 2, "bf16")]),
        pytest.param(4, [(3, 1, "fp32"), (1, 1, "bf16")], marks=pytest.mark.slow),
        pytest.param(
            8,
            [(1, 1, "fp32"), (1, 4, "bf16"), (3, 1, "bf16"), (3, 4, "fp32")],
            marks=[pytest.mark.slow, pytest.mark.timeout(300)],
        ),
    ],
)
def test_slices_of_all_ranks_make_up_the_tensors_that_deepspeed_gathers(
    num_ranks: int, cuts: Sequence[Cut]
) -> None:
    """Ranks, then stage of ZeRO, expert parallel and precision of each case."""
    of_ranks = run_distributed(_assembled, num_ranks, cuts, timeout=25.0 * num_ranks)
    for layout in zip(*of_ranks, strict=True):
        all_names = {name for whole, _, _ in layout for name in whole}
        written = [name for _, own, _ in layout for name in own]
        assert sorted(written) == sorted(all_names), "each tensor is written once"
        assert all(agree for _, _, agree in layout)


def _disk_full_on_rank_1(root: Path, goes_on: bool, in_background: bool) -> dict[str, Any]:
    engine = _engine(1, 2)
    saves = Saves(CheckpointStore(root / "checkpoints", 2, 1, True), in_background, goes_on)
    assert saves.save(engine, 1, progress_at(1), None, {}) == []
    assert saves.finish() == []
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if distributed.rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    found: dict[str, Any] = {"warnings": [], "ended": None}
    try:
        found["warnings"] += saves.save(engine, 2, progress_at(2), None, {})
        while in_background and not distributed.any_rank(saves.failed.is_set()):
            pass  # as in a training, whose ranks agree in every update
        found["warnings"] += saves.finish()
    except UserError as error:
        found["ended"] = str(error)
    except SystemExit as end:
        found["ended"] = end.code
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    distributed.barrier()  # rank 0 removes what is left
    found["left"] = sorted(path.name for path in (root / "checkpoints").iterdir())
    found["failed"] = saves.num_failed
    distributed.barrier()
    if goes_on:
        assert saves.save(engine, 3, progress_at(3), None, {}) + saves.finish() == []
        saves.require_last()
    return found


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("goes_on", [False, True])
def test_a_rank_that_cannot_write(tmp_path: Path, goes_on: bool, in_background: bool) -> None:
    first, second = run_distributed(_disk_full_on_rank_1, 2, tmp_path, goes_on, in_background)
    for found in (first, second):
        assert found["left"] == ["index.json", "update_00000001"] and found["failed"] == 1
    reason = f"{tmp_path}/checkpoints/update_00000002.incomplete/weights.1.safetensors: cannot be"
    if goes_on:
        assert first["warnings"] == second["warnings"] and len(first["warnings"]) == 1
        assert first["warnings"][0].startswith(reason)
        assert first["warnings"][0].endswith("(1 not written since the start)")
        names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert names == ["index.json", "update_00000001", "update_00000003"]
    else:
        assert first["ended"].startswith(reason) and "on_save_error=continue" in first["ended"]
        assert second["ended"] == EXIT_USER_ERROR


def _no_meeting_point(*arguments: Any, **named: Any) -> Any:
    raise ConnectionError("the launcher that held it has ended")


def _end_without_finish(root: Path) -> list[str]:
    engine = _engine(1, 2)
    saves = Saves(CheckpointStore(root / "checkpoints", 2, 1, True), True, False)
    saves.connect(engine)
    dist.new_group = _no_meeting_point
    saves.save(engine, 1, progress_at(1), None, {})
    saves.close()  # what an error in the training leads to
    distributed.barrier()
    return sorted(path.name for path in (root / "checkpoints").iterdir())


def test_a_run_that_fails_still_completes_what_it_has_begun_to_write(tmp_path: Path) -> None:
    assert run_distributed(_end_without_finish, 2, tmp_path)[0] == ["index.json", "update_00000001"]


def _killed_before_it_sends(root: Path) -> int:
    """Rank 1 is killed while rank 0 waits, in its thread, for slices."""
    world = distributed.discover(os.environ)
    distributed.init(world)
    with distributed.watched(world, 30.0):
        engine = _engine(1, 1)
        store = CheckpointStore(root / "checkpoints", 2, 1, True)
        save_and_wait(store, engine, 1, progress_at(1))
        if distributed.rank() == 1:
            # the slices of the rank are copied, and not sent
            Mail.deliver = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        store.start(engine, 2, progress_at(2), None, {}, in_background=True)
        store.finish()
    return 0


def test_a_rank_that_is_killed_while_slices_travel_ends_the_others(tmp_path: Path) -> None:
    with ranks(lambda: _killed_before_it_sends(tmp_path), 2, tmp_path) as processes:
        first, second = processes.wait([0, 1], 25.0)  # before the watchdog has a say
    assert second.code == -signal.SIGKILL
    assert first.code == EXIT_RANK_LOST, first.text
    repair(tmp_path / "checkpoints")
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["index.json", "update_00000001"], "the one before is intact"
