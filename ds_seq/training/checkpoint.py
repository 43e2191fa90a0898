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
from torch import Tensor

from ds_seq import distributed, files
from ds_seq.errors import UserError
from ds_seq.training import checkpoint_folder
from ds_seq.training.checkpoint_folder import (
    FIGURE_KEY,
    FORMER_KEY,
    INCOMPLETE,
    SCORE_KEY,
    SINCE_KEY,
    names_in,
)
from ds_seq.training.engine import Engine
from ds_seq.training.resume_state import EngineState
from ds_seq.training.state import WEIGHT, FullState, full_shape
from ds_seq.weights.fill import expert_offsets, persistent_buffers, read_like
from ds_seq.weights.meta import (
    CHECKSUMS_KEY,
    FORMAT_VERSION,
    INDEX_FILE,
    VOCAB_HASH_KEY,
    read_meta,
    write_meta,
)
from ds_seq.weights.source import TensorFolder, expert_key, save_tensors

_NO_STATE = "without_state"  # names of optimizer tensors that do not exist; of older ones unknown


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
        self._figure = figure
        self._is_rescored = False
        self.index = checkpoint_folder.current_index(folder, keep_last, figure, self._sign)
        if figure is not None:
            by = self.index.get(FIGURE_KEY, figure)
            if by != figure or not comparable:
                former = [{**entry, "by": by} for entry in self.index["best"]]
                self.index[FORMER_KEY] = [*self.index.get(FORMER_KEY, []), *former]
                self.index["best"] = []
                self._is_rescored = True
            self.index[FIGURE_KEY] = figure

    def continue_after(self, update: int) -> list[str]:
        """Make the folder that of a run which has resumed after `update` updates.

        Later checkpoints are set aside, and the index is written again if it is not current. Called
        by one process.

        Args:
            update: number of finished updates.

        Returns:
            Messages for the user.

        Raises:
            UserError: the folder cannot be written.
        """
        renamed = checkpoint_folder.set_aside(self.folder, update)
        aside = {name for name, _ in renamed}
        self.index = checkpoint_folder.without(self.index, aside.__contains__)
        if self._is_rescored:
            self.index[SINCE_KEY] = update
        messages = [f"{self.folder / name}: kept as {new}" for name, new in renamed]
        stored = checkpoint_folder.read_index(self.folder)
        if stored is None and self.index["last"]:
            messages.append(
                f"{self.folder / INDEX_FILE}: was missing or damaged; made again from the "
                "checkpoints. Those that are not in it are kept"
            )
        if stored != self.index and self.index["last"]:
            files.write_json(self.folder / INDEX_FILE, self.index)
        return messages

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
        name = checkpoint_folder.checkpoint_name(update)
        final, temporary = self.folder / name, self.folder / (name + INCOMPLETE)
        try:
            with distributed.shared_errors():
                if distributed.rank() == 0:
                    with files.writing(temporary):
                        files.remove(temporary)
                        temporary.mkdir(parents=True)
            state = FullState(engine.deepspeed)
            absent, written = _write_tensors(engine, state, criterion, temporary)
            shares = distributed.gather_objects((absent, written))
            with distributed.shared_errors():
                if shares is not None:
                    absent = sorted({slot for slots, _ in shares for slot in slots})
                    parts = {file: part for _, share in shares for file, part in share.items()}
                    meta = {
                        **self._notes,
                        "format_version": FORMAT_VERSION,
                        "update": update,
                        SCORE_KEY: score,
                        FIGURE_KEY: self._figure,
                        SINCE_KEY: self.index.get(SINCE_KEY),
                        "written_by": _layout(engine),
                        "optimizer": _optimizer_meta(engine, state, absent),
                        "loss_scaler": engine.loss_scaler_state(),
                        "progress": progress,
                        "files": {file: size for file, (size, _) in parts.items()},
                        CHECKSUMS_KEY: {file: checksum for file, (_, checksum) in parts.items()},
                    }
                    write_meta(temporary, meta)
                    with files.writing(final):
                        checkpoint_folder.replace(temporary, final)
                    self._register(name, score)
        except (UserError, SystemExit):  # the latter on ranks that do not report the error
            if distributed.rank() == 0:
                with suppress(OSError):
                    files.remove(temporary)
            raise
        self.index = distributed.broadcast_object(self.index)
        return final

    def _register(self, name: str, score: float | None) -> None:
        last = [e for e in self.index["last"] if e["name"] != name]
        last.append({"name": name, "score": score})
        best = [e for e in self.index["best"] if e["name"] != name]
        if score is not None:
            best.append({"name": name, "score": score})
            best.sort(key=lambda entry: -self._sign * float(entry["score"]))
        lists = {"last": last[-self.keep_last :], "best": best[: self.keep_best]}
        held = names_in(self.index)
        self.index = {**self.index, **lists}
        files.write_json(self.folder / INDEX_FILE, self.index)
        checkpoint_folder.sweep(self.folder, held - names_in(self.index))


def restore(engine: Engine, folder: Path, checked: bool = False) -> dict[str, Any]:
    """Load optimizer, fp32 weights, schedule and loss scale.

    The model's own weights, including frozen parameters and buffers, must already be loaded.

    Args:
        engine: an engine around the model that `load_weights` has filled from `folder`.
        folder: folder of the checkpoint.
        checked: see `TensorFolder`.

    Returns:
        The `progress` that was passed to `CheckpointStore.save`.

    Raises:
        UserError: the checkpoint is damaged, or belongs to another model or optimizer.
    """
    meta = read_meta(folder, EngineState)
    state = FullState(engine.deepspeed)
    weights = TensorFolder(folder, "weights", checked)
    moments = TensorFolder(folder, "optimizer", checked)
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
        slots = {key: f"{key}/{name}" for key in written["state"]}
        for key in slots if has_state else ():
            if not _is_absent(moments, written, slots, key, first):
                # not by the parameter's shape: Adafactor's row and column sums have other shapes
                state.write(parameter, key, moments.read_stacked(slots[key], first, shape[0]))
    weights.verify()
    moments.verify()
    if has_state:
        state.set_steps(written["steps"])
    engine.schedule.set_updates(written["schedule_updates"])
    engine.load_loss_scaler_state(meta["loss_scaler"])
    return meta["progress"]


def _is_absent(
    moments: TensorFolder,
    written: Mapping[str, Any],
    slots: Mapping[str, str],
    key: str,
    first_expert: int | None,
) -> bool:
    """Return whether a tensor of the optimizer did not exist when the checkpoint was written.

    A frozen parameter has no state, nor has one that never had a gradient, and Adafactor's depends
    on the parameter's shape. Older checkpoints do not record that; of Adam's or SGD's tensors, a
    parameter has all or none.
    """
    present = {
        other: (slot if first_expert is None else expert_key(slot, first_expert)) in moments
        for other, slot in slots.items()
    }
    if present[key]:
        return False
    if _NO_STATE in written:
        return slots[key] in written[_NO_STATE]
    return written["name"] == "Adafactor" or not any(present.values())


def criterion_state(folder: Path, checked: bool = False) -> dict[str, Tensor]:
    """Read the criterion's state from all ranks; empty if it had none.

    Args:
        folder: folder of the checkpoint.
        checked: see `TensorFolder`.

    Raises:
        UserError: the checkpoint is damaged.
    """
    stored = TensorFolder(folder, "criterion", checked)
    tensors = {name: stored.read(name) for name in sorted(stored.keys())}
    stored.verify()
    return tensors


def _cpu_copy(value: Tensor) -> Tensor:
    """Copy to new CPU memory, because safetensors rejects tensors that share memory."""
    return value.detach().to("cpu", copy=True).contiguous()


def _write_tensors(
    engine: Engine, state: FullState, criterion: Mapping[str, Tensor], folder: Path
) -> tuple[list[str], dict[str, tuple[int, str]]]:
    """Gather every tensor in turn and write this rank's share.

    Returns:
        Names of the optimizer tensors that do not exist; size and checksum of each written file.
    """
    offsets = expert_offsets(engine.module)
    kinds: dict[str, dict[str, Tensor]] = {
        "weights": {},
        "optimizer": {},
        "criterion": {name: _cpu_copy(tensor) for name, tensor in criterion.items()},
    }
    optimizer_state = state.state_names() if engine.schedule.updates else ()
    absent: list[str] = []
    for index, (name, parameter) in enumerate(engine.module.named_parameters()):
        first = offsets.get(name)
        is_writer = _is_writer(index, spread=first is not None, engine=engine)
        # a frozen parameter has no optimizer state, but is part of the model
        for key in (WEIGHT, *optimizer_state):
            slot = name if key == WEIGHT else f"{key}/{name}"
            value = None
            if key == WEIGHT or parameter.requires_grad:
                value = state.read(parameter, key)  # a collective: every rank reads, one writes
            if value is None:
                absent.append(slot)
                continue
            if not is_writer:
                continue
            target = kinds["weights" if key == WEIGHT else "optimizer"]
            if first is None:
                target[slot] = _cpu_copy(value)
            else:
                for row in range(value.shape[0]):
                    target[expert_key(slot, first + row)] = _cpu_copy(value[row])
    if distributed.rank() == 0:
        buffers = persistent_buffers(engine.module)
        kinds["weights"].update({name: _cpu_copy(buffer) for name, buffer in buffers})
    return absent, _save(kinds, folder)


def _save(kinds: Mapping[str, dict[str, Tensor]], folder: Path) -> dict[str, tuple[int, str]]:
    """Write a file per kind of tensor; return sizes and checksums by name. A collective."""
    written = {}
    with distributed.shared_errors():
        for kind, tensors in kinds.items():
            if tensors:
                path = folder / f"{kind}.{distributed.rank()}.safetensors"
                with files.writing(path):
                    save_tensors(tensors, path)
                    files.sync(path)
                    written[path.name] = (path.stat().st_size, files.fingerprint(path))
    return written


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


def _optimizer_meta(engine: Engine, state: FullState, absent: list[str]) -> dict[str, Any]:
    return {
        "name": type(engine.deepspeed.basic_optimizer).__name__,
        "steps": state.steps(),
        "state": list(state.state_names()),
        "schedule_updates": engine.schedule.updates,
        _NO_STATE: absent,
    }
