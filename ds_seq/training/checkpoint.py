"""Checkpoints that load at every world size, expert-parallel size, ZeRO stage and precision.

DeepSpeed's own checkpoints are split by rank and load only into the same layout, or after a
conversion step. These hold whole tensors by name: fp32 weights and optimizer state, experts by
global index, and the model's persistent buffers unchanged. Every rank writes a share: the ranks
that hold a parameter take turns, and the first rank writes the buffers, which all ranks hold. A
folder is written under a temporary name and renamed when complete, so it is never partial.

    <run>/checkpoints/index.json                    names of the last and of the best checkpoints
    <run>/checkpoints/update_00001200/checkpoint.json
                                     /weights.<rank>.safetensors
                                     /optimizer.<rank>.safetensors
                                     /criterion.<rank>.safetensors   if the criterion has state
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from pydantic import FiniteFloat
from torch import Tensor
from typing_extensions import TypedDict

from ds_seq import distributed, files
from ds_seq.errors import UserError
from ds_seq.records import Count, record
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
    read_index,
    read_meta,
    save_tensors,
)

_TEMPORARY, _REPLACED = ".incomplete", ".replaced"


@record
class _Optimizer(TypedDict):
    """State of the optimizer besides its tensors."""

    name: str
    steps: FiniteFloat
    state: list[str]
    schedule_updates: Count


@record
class _Meta(TypedDict):
    """The part of `checkpoint.json` that a resume reads."""

    optimizer: _Optimizer
    loss_scaler: dict[str, float | None]
    progress: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: `<run>/checkpoints`.
        keep_last: number of most recent checkpoints to keep.
        keep_best: number of best checkpoints to keep.
        higher_is_better: whether a higher score is better.
        vocab_hash: hash of the vocabulary, stored so that no other vocabulary is used with the
            checkpoints.
        figure: name of the score; an index without a name is assumed to use this one.
        comparable: whether scores by that name mean what they meant before. If not, or if the best
            checkpoints were chosen by another score, they are kept as `former_best`.
    """

    def __init__(
        self,
        folder: Path,
        keep_last: int,
        keep_best: int,
        higher_is_better: bool,
        vocab_hash: str | None = None,
        figure: str | None = None,
        comparable: bool = True,
    ) -> None:
        self.folder = folder
        self._notes = {} if vocab_hash is None else {VOCAB_HASH_KEY: vocab_hash}
        self.keep_last, self.keep_best = keep_last, keep_best
        self._sign = 1.0 if higher_is_better else -1.0
        self.index: dict[str, Any] = {"last": [], "best": []}
        with suppress(FileNotFoundError):
            self.index = dict(read_index(folder))
        if figure is not None:
            by = self.index.get("best_by", figure)
            if by != figure or not comparable:
                former = [{**entry, "by": by} for entry in self.index["best"]]
                self.index["former_best"] = [*self.index.get("former_best", []), *former]
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
        """Write the state after `update`. A collective.

        Args:
            engine: the engine whose weights, optimizer and schedule are written.
            update: number of finished updates.
            progress: state of everything else, serializable as JSON.
            score: validation score; None if this state was not validated.
            criterion: state of the criterion; no two ranks pass the same name.

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
        """Remove the leftovers of an interrupted save."""
        files.remove_leftovers(self.folder)
        for path in self.folder.glob(f"*{_TEMPORARY}"):
            files.remove(path)
        for path in self.folder.glob(f"*{_REPLACED}"):
            whole = path.with_name(path.name.removesuffix(_REPLACED))
            if whole.exists():
                files.remove(path)
            else:  # interrupted between the two renames of `_replace`
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
        entries = [*lists["last"], *lists["best"], *self.index.get("former_best", [])]
        kept_names = {entry["name"] for entry in entries}
        for path in self.folder.glob("update_*"):
            if path.name not in kept_names and path.suffix not in (_TEMPORARY, _REPLACED):
                files.remove(path)


def restore(engine: Engine, folder: Path) -> dict[str, Any]:
    """Load optimizer, fp32 weights, schedule and loss scale.

    The model's own weights, including frozen parameters and buffers, must already be loaded.

    Args:
        engine: an engine around the model that `load_weights` has filled from `folder`.
        folder: folder of the checkpoint.

    Returns:
        The `progress` that was passed to `CheckpointStore.save`.

    Raises:
        UserError: the checkpoint is damaged, or belongs to another model or optimizer.
    """
    meta = read_meta(folder, _Meta)
    state = FullState(engine.deepspeed)
    weights, moments = TensorFolder(folder, "weights"), TensorFolder(folder, "optimizer")
    written = meta["optimizer"]
    if written["name"] != type(engine.deepspeed.basic_optimizer).__name__:
        raise UserError(
            f"{folder}: holds the state of {written['name']}, but the experiment sets "
            f"optimizer.name={type(engine.deepspeed.basic_optimizer).__name__.lower()}; "
            "use the optimizer of the checkpoint"
        )
    offsets = expert_offsets(engine.module)
    has_state = written["schedule_updates"] > 0  # an optimizer has no state before its first step
    if has_state:
        state.make_state()
    for name, parameter in state.parameters():
        shape, first = full_shape(parameter), offsets.get(name)
        state.write(parameter, WEIGHT, read_like(weights, name, shape, torch.float32, first))
        for key in written["state"]:
            slot = f"{key}/{name}"
            if has_state and _has(moments, slot, first):
                # not by the parameter's shape: Adafactor's row and column sums have other shapes
                state.write(parameter, key, moments.read_stacked(slot, first, shape[0]))
    if has_state:
        state.set_steps(written["steps"])
    engine.schedule.set_updates(written["schedule_updates"])
    engine.load_loss_scaler_state(meta["loss_scaler"])
    return meta["progress"]


def criterion_state(folder: Path) -> dict[str, Tensor]:
    """Read the criterion's state from all ranks; empty if it had none.

    Raises:
        UserError: the checkpoint is damaged.
    """
    stored = TensorFolder(folder, "criterion")
    return {name: stored.read(name) for name in sorted(stored.keys())}


def _has(moments: TensorFolder, slot: str, first_expert: int | None) -> bool:
    return (slot if first_expert is None else expert_key(slot, first_expert)) in moments


def _cpu_copy(value: Tensor) -> Tensor:
    """Copy to new CPU memory, because safetensors rejects tensors that share memory."""
    return value.detach().to("cpu", copy=True).contiguous()


def _write_tensors(
    engine: Engine, state: FullState, criterion: Mapping[str, Tensor], folder: Path
) -> dict[str, int]:
    """Gather every tensor in turn, write this rank's share and return the file sizes."""
    offsets = expert_offsets(engine.module)
    kinds: dict[str, dict[str, Tensor]] = {
        "weights": {},
        "optimizer": {},
        "criterion": {name: _cpu_copy(tensor) for name, tensor in criterion.items()},
    }
    optimizer_state = state.state_names() if engine.schedule.updates else ()
    for index, (name, parameter) in enumerate(engine.module.named_parameters()):
        first = offsets.get(name)
        is_writer = _is_writer(index, spread=first is not None, engine=engine)
        # a frozen parameter has no optimizer state, but is part of the model
        for key in (WEIGHT, *(optimizer_state if parameter.requires_grad else ())):
            value = state.read(parameter, key)  # a collective: every rank reads, one writes
            if value is None or not is_writer:
                continue
            target = kinds["weights" if key == WEIGHT else "optimizer"]
            slot = name if key == WEIGHT else f"{key}/{name}"
            if first is None:
                target[slot] = _cpu_copy(value)
            else:
                for row in range(value.shape[0]):
                    target[expert_key(slot, first + row)] = _cpu_copy(value[row])
    if distributed.rank() == 0:
        buffers = persistent_buffers(engine.module)
        kinds["weights"].update({name: _cpu_copy(buffer) for name, buffer in buffers})
    sizes = {}
    with distributed.shared_errors():
        for kind, tensors in kinds.items():
            if tensors:
                path = folder / f"{kind}.{distributed.rank()}.safetensors"
                _save_tensors(tensors, path)
                sizes[path.name] = path.stat().st_size
    return sizes


def _is_writer(index: int, spread: bool, engine: Engine) -> bool:
    """Return whether this rank writes parameter `index`.

    All ranks take turns with dense parameters; the ranks that hold the same experts take turns with
    those.
    """
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
    """Rename `new` to `final`; delete the old `final` only after the new one is in place."""
    old = final.with_name(final.name + _REPLACED)
    if final.exists():
        files.remove(old)
        final.rename(old)
    new.rename(final)
    files.remove(old)
