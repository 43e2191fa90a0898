"""Which weights of a training are imported: of one checkpoint, or a mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ds_seq.errors import UserError
from ds_seq.runs.formats.fairseq.stitching import read_checkpoint

State = dict[str, Tensor]


@dataclass(frozen=True)
class Weights:
    """Which weights to take.

    Attributes:
        stored_averages: whether to take the moving averages that `--store-ema` has stored.
        others: checkpoints with which to average, tensor by tensor, as fairseq's
            `average_checkpoints.py` does.
    """

    stored_averages: bool = False
    others: Sequence[Path] = ()

    def read(
        self, checkpoint: Mapping[str, Any], path: Path, experts_of: Callable[[Path], State]
    ) -> State:
        """Return the tensors by name.

        Args:
            checkpoint: content of the checkpoint.
            path: its file.
            experts_of: returns the experts that are stored next to a checkpoint.

        Raises:
            UserError: a checkpoint has no averages, or others do not have the same tensors.
        """
        state = self._of_one(checkpoint, path) | experts_of(path)
        if not self.others:
            return state
        sums = {name: value.double() for name, value in state.items()}
        for other in self.others:
            more = self._of_one(read_checkpoint(other), other) | experts_of(other)
            _check_same(state, more, path, other)
            for name, value in more.items():
                sums[name] += value.double()
        count = len(self.others) + 1
        return {name: (total / count).to(_exact(state[name])) for name, total in sums.items()}

    def _of_one(self, checkpoint: Any, path: Path) -> State:
        content = checkpoint if isinstance(checkpoint, Mapping) else {}
        if not self.stored_averages:
            return named_tensors(content.get("model"), path)
        extra = content.get("extra_state") or {}
        if "ema" not in extra:
            raise UserError(
                f"{path}: --ema: has no averages of weights; its training did not --store-ema"
            )
        averages = named_tensors(extra["ema"], path)
        exact = named_tensors(extra.get("ema_fp32_params") or {}, path)
        return {**averages, **{name: exact[name] for name in averages if name in exact}}


OF_CHECKPOINT = Weights()
"""Those of the checkpoint itself."""


def named_tensors(state: Any, path: Path) -> State:
    """Return the tensors of a file by name.

    Args:
        state: what the file has in their place.
        path: the file, for messages.

    Raises:
        UserError: something else is among them.
    """
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: has no weights by name; give a checkpoint that fairseq wrote")
    wrong = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if wrong is not None:
        raise UserError(f"{path}: {wrong} is no tensor; give a checkpoint that fairseq wrote")
    return {str(name): value.detach() for name, value in state.items()}


def _check_same(state: State, more: State, path: Path, other: Path) -> None:
    for name in sorted(state.keys() | more.keys()):
        shapes = [tuple(s[name].shape) if name in s else "none" for s in (state, more)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"--average {other}: {name} has the shape {shapes[1]}, and in {path} {shapes[0]}; "
                "give checkpoints of one training"
            )


def _exact(value: Tensor) -> torch.dtype:
    """Return the precision of a mean: that of single weights, or more."""
    return torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype
