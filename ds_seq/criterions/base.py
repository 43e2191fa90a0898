"""What every criterion is: a function of a model's output and a batch.

All terms are sums over target tokens, so that one divisor, the token count of the whole update over
all ranks, is right for every term, however the update is cut into batches.

Shapes: N real target tokens of the batch, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from ds_seq.data.batch import Batch
from ds_seq.models.output import ModelOutput
from ds_seq.names import Capture


class Loss(NamedTuple):
    """A batch's loss, summed over its tokens."""

    total: Tensor
    """() what is differentiated."""
    parts: dict[str, Tensor]
    """Detached () sums by name, unweighted; divided by the number of tokens they are per-token
    means."""


class Criterion(ABC):
    """`criterion(output, batch)`; `output.logits` is (N, V), one row per real target token.

    Most criterions remember nothing. One that does is told what happens to its batches, and goes
    into checkpoints.

    Attributes:
        training: False while a model is validated, which must leave no trace in a criterion.
        capture: what the model's output must hold besides logits and router losses.
    """

    training: bool = True
    capture: Capture = "none"

    @abstractmethod
    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Compute the loss of one batch."""

    def train(self, mode: bool = True) -> None:
        """Train from now on, or with False validate; validation puts back what it found."""
        self.training = mode

    def end_update(self, applied: bool) -> None:  # noqa: B027 - nothing to do is a fine default
        """All batches of an update have been seen; a collective.

        Args:
            applied: False where fp16 gradients overflowed: the batches do not count.
        """

    def state(self) -> dict[str, Tensor]:
        """What this rank adds to a checkpoint; no two ranks use the same name."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - likewise
        """Undo of `state`.

        Args:
            state: what all ranks of the run had added, maybe more or fewer than now.
        """


class PlainCriterion(Criterion):
    """A criterion made of a function, such as a plug-in may be."""

    def __init__(self, function: Callable[[ModelOutput, Batch], Loss]) -> None:
        self._function = function

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """See `Criterion.__call__`."""
        return self._function(output, batch)
