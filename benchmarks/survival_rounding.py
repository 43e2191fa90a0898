"""What one rounding does to the weights of a run: the scale for differences between layouts."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.survival_trials import (
    LAYOUTS,
    LIMIT,
    UPDATES,
    Bench,
    Row,
    difference,
    newest,
    tensors,
)
from ds_seq import files
from ds_seq.weights.meta import CHECKSUMS_KEY, read_meta, write_meta
from ds_seq.weights.source import save_tensors


def rounding(bench: Bench, trial: int) -> Row | None:
    """Move the weights of a checkpoint by one unit in the last place; resume in the same layout.

    A copy that is resumed as it is has to end with the very weights of the uninterrupted run.
    """
    if trial >= len(LAYOUTS):
        return None
    layout, half = LAYOUTS[trial], f"train.max_updates={UPDATES // 2}"
    expected = tensors(bench.whole(layout))
    run, copy = bench.fresh("rounding"), bench.fresh("rounding_copy")
    outcome = bench.train(run, layout, half).wait(LIMIT)
    assert outcome.codes == [0] * layout[0], outcome.text
    shutil.copytree(run, copy)
    move_weights(newest(run), seed=trial)
    found = {}
    for name, folder in (("copy", copy), ("moved", run)):
        outcome = bench.train(folder, layout).wait(LIMIT)
        assert outcome.codes == [0] * layout[0], outcome.text
        found[name] = difference(expected, tensors(folder))
    return {"layout": layout, **found}


def move_weights(checkpoint: Path, seed: int) -> None:
    """Move each weight of a checkpoint up or down, to the next number that fp32 can hold."""
    draws = torch.Generator().manual_seed(seed)
    meta: dict[str, Any] = {**read_meta(checkpoint)}
    for path in checkpoint.glob("weights.*.safetensors"):
        moved = {}
        for name, value in load_file(path).items():
            if value.is_floating_point():
                up = torch.randint(2, value.shape, generator=draws).bool()
                towards = torch.where(up, math.inf, -math.inf)
                value = torch.nextafter(value, towards)
            moved[name] = value
        save_tensors(moved, path)
        meta["files"][path.name] = path.stat().st_size
        meta[CHECKSUMS_KEY][path.name] = files.fingerprint(path)
    write_meta(checkpoint, meta)
