"""Checkpoints that load at every world size, expert-parallel size, ZeRO stage and precision.

DeepSpeed's own checkpoints are cut by rank and reload at one layout, or after a conversion step.
Ours hold whole tensors by name, fp32 weights and optimizer state alike, experts by global index,
and the model's persistent buffers as they are. All ranks write a share: a parameter goes to one of
the ranks that have it, in turn; buffers, which all have, to the first. A folder is written under a
temporary name and renamed when it is complete, so it is there whole or not at all.

    <run>/checkpoints/index.json                    which is the last, which are the best
    <run>/checkpoints/update_00001200/checkpoint.json
                                     /weights.<rank>.safetensors
                                     /optimizer.<rank>.safetensors
                                     /criterion.<rank>.safetensors   if it remembers anything
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ds_seq import distributed, files
from ds_seq.errors import UserError
from ds_seq.training.engine import Engine
from ds_seq.training.state import WEIGHT, FullState, full_shape
from ds_seq.weights.fill import expert_offsets, persistent_buffers, read_like
from ds_seq.weights.source import (
    FORMAT_VERSION,
    INDEX_FILE,
    META_FILE,
    VOCAB_HASH_KEY,
    TensorFolder,
    expert_key,
    read_meta,
    save_tensors,
)

_TEMPORARY, _REPLACED = ".incomplete", ".replaced"


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: ``<run>/checkpoints``.
        keep_last: how many of the most recent ones stay.
        keep_best: how many of the best ones stay.
        higher_is_better: of the score.
        vocab_hash: of the vocabulary, so that checkpoints are not used with another one.
        figure: name of the score. Checkpoints that were the best by another one no longer are; an
            index of before it was noted belongs to any.
    """

    def __init__(
        self,
        folder: Path,
        keep_last: int,
        keep_best: int,
        higher_is_better: bool,
        vocab_hash: str | None = None,
        figure: str | None = None,
    ) -> None:
        self.folder = folder
        self._notes = {} if vocab_hash is None else {VOCAB_HASH_KEY: vocab_hash}
        self.keep_last, self.keep_best = keep_last, keep_best
        self._sign = 1.0 if higher_is_better else -1.0
        self.index: dict[str, Any] = {"last": [], "best": []}
        if (folder / INDEX_FILE).is_file():
            self.index = _read_json(folder / INDEX_FILE)
        if figure is not None:
            if self.index.get("best_by", figure) != figure:
                self.index["best"] = []
            self.index["best_by"] = figure

    def save(
        self,
        engine: Engine,
        update: int,
        progress: dict[str, Any],
        score: float | None,
        criterion: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Path:
        """Write the state after ``update``. A collective.

        Args:
            engine: whose weights, optimizer and schedule are written.
            update: number of finished updates.
            progress: JSON-able state of everything else.
            score: validation score, if this state was validated.
            criterion: what the criterion remembers; no two ranks give the same name.

        Returns:
            The checkpoint's folder.
        """
        name = f"update_{update:08d}"
        final, temporary = self.folder / name, self.folder / (name + _TEMPORARY)
        with distributed.shared_errors():
            if distributed.rank() == 0:
                files.remove(temporary)
                _make_folder(temporary)
        state = FullState(engine.deepspeed)
        sizes = _write_tensors(engine, state, criterion, temporary)
        all_sizes = distributed.gather_objects(sizes)
        with distributed.shared_errors():
            if all_sizes is not None:
                meta = {
                    **self._notes,
                    "format_version": FORMAT_VERSION,
                    "update": update,
                    "written_by": _layout(engine),
                    "optimizer": _optimizer_meta(engine, state),
                    "loss_scaler": engine.loss_scaler_state(),
                    "progress": progress,
                    "files": {file: size for part in all_sizes for file, size in part.items()},
                }
                files.write_json(temporary / META_FILE, meta)
                _replace(temporary, final)
                self._register(name, score)
        self.index = distributed.broadcast_object(self.index)
        return final

    def discard_incomplete(self) -> None:
        """Remove what a killed save has left."""
        files.remove_leftovers(self.folder)
        for path in self.folder.glob(f"*{_TEMPORARY}"):
            files.remove(path)
        for path in self.folder.glob(f"*{_REPLACED}"):
            whole = path.with_name(path.name.removesuffix(_REPLACED))
            if whole.exists():
                files.remove(path)
            else:  # killed between the two renames of `_replace`
                path.rename(whole)

    def _register(self, name: str, score: float | None) -> None:
        last = [e for e in self.index["last"] if e["name"] != name]
        last.append({"name": name, "score": score})
        best = [e for e in self.index["best"] if e["name"] != name]
        if score is not None:
            best.append({"name": name, "score": score})
            best.sort(key=lambda entry: -self._sign * float(entry["score"]))
        lists = {"last": last[-self.keep_last :], "best": best[: self.keep_best]}
        self.index = {**self.index, **lists}
        files.write_json(self.folder / INDEX_FILE, self.index)
        kept = {entry["name"] for entries in lists.values() for entry in entries}
        for path in self.folder.glob("update_*"):
            if path.name not in kept and path.suffix not in (_TEMPORARY, _REPLACED):
                files.remove(path)


def restore(engine: Engine, folder: Path) -> dict[str, Any]:
    """Load optimizer, fp32 weights, schedule and loss scale.

    The model's own weights are loaded before, those that are not trained and its buffers included.

    Args:
        engine: made around the model that `load_weights` has filled from ``folder``.
        folder: a checkpoint.

    Returns:
        The ``progress`` that `CheckpointStore.save` was given.

    Raises:
        UserError: the checkpoint is damaged, of another model or of another optimizer.
    """
    meta = read_meta(folder)
    state = FullState(engine.deepspeed)
    weights, moments = TensorFolder(folder, "weights"), TensorFolder(folder, "optimizer")
    written = meta["optimizer"]
    if written["name"] != type(engine.deepspeed.basic_optimizer).__name__:
        raise UserError(
            f"{folder}: holds the state of {written['name']}, the experiment says "
            f"optimizer.name={type(engine.deepspeed.basic_optimizer).__name__.lower()}; "
            "use the optimizer of the checkpoint"
        )
    offsets = expert_offsets(engine.module)
    has_state = written["schedule_updates"] > 0  # before its first step an optimizer has none
    if has_state:
        state.make_state()
    for name, parameter in state.parameters():
        shape, first = full_shape(parameter), offsets.get(name)
        state.write(parameter, WEIGHT, read_like(weights, name, shape, torch.float32, first))
        for key in written["state"]:
            slot = f"{key}/{name}"
            if has_state and _has(moments, slot, first):
                # not by the parameter's shape: Adafactor's row and column sums have their own
                state.write(parameter, key, moments.read_stacked(slot, first, shape[0]))
    if has_state:
        state.set_steps(float(written["steps"]))
    engine.schedule.set_updates(int(written["schedule_updates"]))
    engine.load_loss_scaler_state(meta["loss_scaler"])
    progress: dict[str, Any] = meta["progress"]
    return progress


def criterion_state(folder: Path) -> dict[str, Tensor]:
    """What the criterion of all ranks had remembered; empty if nothing.

    Raises:
        UserError: the checkpoint is damaged.
    """
    stored = TensorFolder(folder, "criterion")
    return {name: stored.read(name) for name in sorted(stored.keys())}


def _has(moments: TensorFolder, slot: str, first_expert: int | None) -> bool:
    return (slot if first_expert is None else expert_key(slot, first_expert)) in moments


def _own_copy(value: Tensor) -> Tensor:
    """On the CPU, in storage of its own: safetensors refuses tensors that share memory."""
    return value.detach().to("cpu", copy=True).contiguous()


def _write_tensors(
    engine: Engine, state: FullState, criterion: Mapping[str, Tensor], folder: Path
) -> dict[str, int]:
    """Gather every tensor in turn and write the share of this rank; returns file sizes."""
    offsets = expert_offsets(engine.module)
    kinds: dict[str, dict[str, Tensor]] = {
        "weights": {},
        "optimizer": {},
        "criterion": {name: _own_copy(tensor) for name, tensor in criterion.items()},
    }
    optimizer_state = state.state_names() if engine.schedule.updates else ()
    for index, (name, parameter) in enumerate(engine.module.named_parameters()):
        first = offsets.get(name)
        mine = _is_writer(index, spread=first is not None, engine=engine)
        # a parameter that is not trained has no optimizer state, but belongs to the model
        for key in (WEIGHT, *(optimizer_state if parameter.requires_grad else ())):
            value = state.read(parameter, key)  # a collective: every rank reads, one keeps
            if value is None or not mine:
                continue
            target = kinds["weights" if key == WEIGHT else "optimizer"]
            slot = name if key == WEIGHT else f"{key}/{name}"
            if first is None:
                target[slot] = _own_copy(value)
            else:
                for row in range(value.shape[0]):
                    target[expert_key(slot, first + row)] = _own_copy(value[row])
    if distributed.rank() == 0:
        buffers = persistent_buffers(engine.module)
        kinds["weights"].update({name: _own_copy(buffer) for name, buffer in buffers})
    sizes = {}
    with distributed.shared_errors():
        for kind, tensors in kinds.items():
            if tensors:
                path = folder / f"{kind}.{distributed.rank()}.safetensors"
                _save_tensors(tensors, path)
                sizes[path.name] = path.stat().st_size
    return sizes


def _is_writer(index: int, spread: bool, engine: Engine) -> bool:
    """Whether this rank writes parameter ``index``: dense ones in turn over all ranks, experts in
    turn over the ranks that hold the same ones."""
    ranks = engine.expert_parallel if spread else 1
    replicas = distributed.world_size() // ranks
    return index % replicas == distributed.rank() // ranks


def _layout(engine: Engine) -> dict[str, Any]:
    return {
        "world_size": distributed.world_size(),
        "expert_parallel": engine.expert_parallel,
        "zero_stage": engine.zero_stage,
    }


def _optimizer_meta(engine: Engine, state: FullState) -> dict[str, Any]:
    return {
        "name": type(engine.deepspeed.basic_optimizer).__name__,
        "steps": state.steps(),
        "state": list(state.state_names()),
        "schedule_updates": engine.schedule.updates,
    }


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_tensors(tensors, path)
    except OSError as error:
        raise files.unwritable(path, error) from error


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise files.unwritable(path, error) from error


def _replace(new: Path, final: Path) -> None:
    """Rename ``new`` to ``final``; what was there goes only when the new one is in its place."""
    old = final.with_name(final.name + _REPLACED)
    if final.exists():
        files.remove(old)
        final.rename(old)
    new.rename(final)
    files.remove(old)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); remove it to start anew") from error
    return value
