"""Checkpoints that load at every world size, expert-parallel size, ZeRO stage and precision.

DeepSpeed's own checkpoints are split by rank and load only into the same layout, or after a
conversion step. These hold whole tensors by name: fp32 weights and optimizer state, experts by
global index, and the model's persistent buffers unchanged. Every rank writes a share: the ranks
that hold a parameter take turns, and the first rank writes the buffers, which all ranks hold. A
folder is written under a temporary name and renamed when complete, so it is never partial.

    <run>/checkpoints/index.json                    names of the last and of the best checkpoints
    <run>/checkpoints/update_00001200/checkpoint.json
                                     /weights.<rank>.safetensors
                                     /ema.<rank>.safetensors         with `train.ema`
                                     /optimizer.<rank>.safetensors
                                     /criterion.<rank>.safetensors   if the criterion has state
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ds_seq import distributed, files
from ds_seq.distributed.exchange import Exchange
from ds_seq.errors import UserError
from ds_seq.training import checkpoint_folder
from ds_seq.training.background import BackgroundWrite, Complete, Share, write_share
from ds_seq.training.checkpoint_folder import (
    FIGURE_KEY,
    FORMER_KEY,
    INCOMPLETE,
    SCORE_KEY,
    SINCE_KEY,
    names_in,
)
from ds_seq.training.engine import Engine
from ds_seq.training.resume_state import NO_STATE
from ds_seq.training.slices import HostMemory
from ds_seq.training.snapshot import Snapshot, take
from ds_seq.weights.meta import (
    CHECKSUMS_KEY,
    FORMAT_VERSION,
    INDEX_FILE,
    VOCAB_HASH_KEY,
    write_index,
    write_meta,
)


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
        drops_state: whether checkpoints that are only kept as best ones lose all but their weights.

    Attributes:
        failed: set while this rank knows that the checkpoint in the background cannot be written.
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
        drops_state: bool = False,
    ) -> None:
        self.folder, self._drops_state = folder, drops_state
        self._notes = {} if vocab_hash is None else {VOCAB_HASH_KEY: vocab_hash}
        self.keep_last, self.keep_best = keep_last, keep_best
        self._sign = 1.0 if higher_is_better else -1.0
        self._figure = figure
        self._is_rescored = False
        self._pending: BackgroundWrite | None = None
        self.failed = threading.Event()
        self._exchange = Exchange()
        self._memory = {kept: HostMemory(kept) for kept in (False, True)}
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
        if stored is None and self.index["last"]:
            write_index(self.folder, self.index)
        elif stored != self.index and self.index["last"]:
            # a kill between a save and its index has left what that save would have deleted
            self._keep(self.index["last"], self.index["best"])
        return messages

    def connect(self, engine: Engine) -> None:
        """Connect ranks that have slices for each other. A collective.

        The first save would do it too. But ranks meet at a store that `torchrun` holds, and the
        first save may be that of a training whose launcher has been killed.
        """
        if engine.zero_stage > 0 and distributed.world_size() > 1:
            self._exchange.open()

    def start(
        self,
        engine: Engine,
        update: int,
        progress: dict[str, Any],
        score: float | None,
        criterion: Mapping[str, Tensor],
        in_background: bool,
    ) -> str | None:
        """Write the state after `update`, or begin to. A collective.

        Args:
            engine: the engine whose weights, optimizer and schedule are written.
            update: number of finished updates.
            progress: state of everything else, serializable as JSON.
            score: validation score; None if this state was not validated.
            criterion: state of the criterion; no two ranks pass the same name.
            in_background: return as soon as the state is in host memory; `finish` waits for the
                rest, and is called before the next save. Otherwise return when it is written.

        Returns:
            Why it cannot be written, on all ranks; what was there before is unchanged.
        """
        assert self._pending is None, "`finish` has been called since the last save"
        name = checkpoint_folder.checkpoint_name(update)
        temporary = self.folder / (name + INCOMPLETE)
        error = distributed.agree_on_error(self._make(temporary))
        if error is not None:
            return self._agreed(temporary, error)
        memory = self._memory[in_background]
        snapshot = take(engine, criterion, progress, memory, self._exchange)
        meta = {
            **self._notes,
            "format_version": FORMAT_VERSION,
            "update": update,
            SCORE_KEY: score,
            FIGURE_KEY: self._figure,
            SINCE_KEY: self.index.get(SINCE_KEY),
            **snapshot.facts,
        }
        complete = partial(self._complete, temporary, meta, score)
        if in_background:
            self._pending = BackgroundWrite(
                snapshot, self._exchange, temporary, complete, self.failed
            )
            return None
        return self._write(snapshot, temporary, complete)

    def finish(self) -> str | None:
        """Wait for the checkpoint that is written in the background, if there is one.

        A collective, after which all ranks agree on what has been written.

        Returns:
            Why it could not be written, on all ranks; None: it was, or there is none.
        """
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        error = distributed.agree_on_error(pending.wait_for_share())
        if error is not None:
            pending.give_up()
        own = pending.wait()
        self.failed.clear()
        error = error or distributed.agree_on_error(own)
        return self._agreed(pending.folder, error)

    @property
    def is_pending(self) -> bool:
        """Whether a checkpoint has been started whose end `finish` has not seen."""
        return self._pending is not None

    def close(self) -> None:
        """Wait for the checkpoint in the background where other ranks may have ended."""
        if self._pending is not None:
            self._pending.close()

    def _make(self, temporary: Path) -> str | None:
        """Make an empty folder on the first rank; return the error, if there is one."""
        try:
            if distributed.rank() == 0:
                with files.writing(temporary):
                    files.remove(temporary)
                    temporary.mkdir(parents=True)
        except UserError as error:
            return str(error)
        return None

    def _write(self, snapshot: Snapshot, temporary: Path, complete: Complete) -> str | None:
        """Write a checkpoint while all ranks wait; return the error of any, if there is one."""
        share = error = None
        try:
            share = write_share(snapshot, self._exchange, temporary)
        except UserError as failure:
            error = str(failure)
        error = distributed.agree_on_error(error)
        shares = None if error is not None else distributed.gather_objects(share)
        try:
            if shares is not None:
                complete(shares)
        except UserError as failure:
            error = str(failure)
        error = error or distributed.agree_on_error(error)
        return self._agreed(temporary, error)

    def _complete(
        self, temporary: Path, meta: dict[str, Any], score: float | None, shares: Sequence[Share]
    ) -> None:
        """Write the JSON file, which makes the folder a checkpoint, and give it its name."""
        parts = {file: part for share in shares for file, part in share.files.items()}
        absent = sorted({slot for share in shares for slot in share.absent})
        sums = {file: checksum for file, (_, checksum) in parts.items()}
        optimizer = {**meta["optimizer"], NO_STATE: absent}
        sizes = {file: size for file, (size, _) in parts.items()}
        whole = {**meta, "optimizer": optimizer, "files": sizes, CHECKSUMS_KEY: sums}
        write_meta(temporary, whole)
        final = temporary.with_name(temporary.name.removesuffix(INCOMPLETE))
        with files.writing(final):
            checkpoint_folder.replace(temporary, final)
        self._register(final.name, score)

    def _agreed(self, temporary: Path, error: str | None) -> str | None:
        """Clean up after an error that all ranks know of, or share the index; return the error."""
        if error is None:
            self.index = distributed.broadcast_object(self.index)
        elif distributed.rank() == 0:
            with suppress(OSError):
                files.remove(temporary)
        return error

    def _register(self, name: str, score: float | None) -> None:
        last = [e for e in self.index["last"] if e["name"] != name]
        last.append({"name": name, "score": score})
        best = [e for e in self.index["best"] if e["name"] != name]
        if score is not None:
            best.append({"name": name, "score": score})
            best.sort(key=lambda entry: -self._sign * float(entry["score"]))
        self._keep(last, best)

    def _keep(self, last: list[dict[str, Any]], best: list[dict[str, Any]]) -> None:
        """Write an index of as many checkpoints as are to be kept, and delete the others."""
        lists = {"last": last[-self.keep_last :], "best": best[: self.keep_best]}
        held = names_in(self.index)
        self.index = {**self.index, **lists}
        write_index(self.folder, self.index)
        checkpoint_folder.sweep(self.folder, held - names_in(self.index))
        if self._drops_state:
            recent = {entry["name"] for entry in lists["last"]}
            checkpoint_folder.drop_state(self.folder, names_in(self.index) - recent)
