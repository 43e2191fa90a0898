"""How long a save holds up training, with the writing in the background and without."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from ds_seq import distributed
from ds_seq.config.model import MoeConfig
from ds_seq.config.optim import AdamConfig
from ds_seq.training.checkpoint import CheckpointStore
from ds_seq.training.engine import Engine
from tests.distributed import spine
from tests.distributed.harness import run_distributed
from tests.values import progress_at

LAYOUTS = ((1, 1, 0), (2, 2, 1), (2, 2, 3))
"""World size, expert parallel, stage of ZeRO."""
_ROUNDS = 4
_MOE = MoeConfig(num_experts=4, top_k=2, capacity_factor=None, every=1)
_MODEL: dict[str, Any] = {"d_model": 1024, "ffn_dim": 2560, "num_heads": 8, "moe": _MOE}


def measure(folder: Path, layout: tuple[int, int, int]) -> dict[str, Any]:
    """Return seconds of both kinds of save, and of updates without and during one.

    Args:
        folder: where checkpoints of 650 MB are written, on the disk of interest.
        layout: one of `LAYOUTS`.
    """
    world, *rest = layout
    results = run_distributed(_measure, world, folder, *rest, timeout=500.0)
    shutil.rmtree(folder, ignore_errors=True)
    return {"layout": layout, **results[0]}


def _measure(folder: Path, expert_parallel: int, stage: int) -> dict[str, Any]:
    model = spine.small_model(**_MODEL)
    engine = spine.make_engine(
        stage, expert_parallel, model=model, optimizer=AdamConfig(lr=1e-4), micro_batches=2
    )
    store = CheckpointStore(folder / "checkpoints", 1, 1, True)
    update = _train(engine, 0)[0]
    seconds: dict[str, list[float]] = {
        name: [] for name in ("waiting", "background", "alone", "update", "update_during")
    }
    for index in range(_ROUNDS + 1):  # the first one fills memory that is used again
        update, took = _train(engine, update)
        seconds["update"].append(took)
        seconds["waiting"].append(_save(store, engine, update, in_background=False))
        update, took = _train(engine, update)
        begin = time.perf_counter()
        seconds["background"].append(_save(store, engine, update, in_background=True))
        update, took = _train(engine, update)
        seconds["update_during"].append(took)
        assert store.finish() is None
        seconds["alone"].append(time.perf_counter() - begin)
        if index == 0:
            for values in seconds.values():
                values.clear()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"bytes": size, **{name: statistics.median(each) for name, each in seconds.items()}}


def _train(engine: Engine, update: int) -> tuple[int, float]:
    distributed.barrier()
    begin = time.perf_counter()
    spine.train(engine, range(update, update + 1))
    return update + 1, time.perf_counter() - begin


def _save(store: CheckpointStore, engine: Engine, update: int, in_background: bool) -> float:
    distributed.barrier()
    begin = time.perf_counter()
    assert store.start(engine, update, progress_at(update), None, {}, in_background) is None
    distributed.barrier()
    return time.perf_counter() - begin
