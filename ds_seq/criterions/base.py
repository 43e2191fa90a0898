"""The interface of criterions, functions of a model's output and a batch.

All terms are sums over target tokens, so that all can be divided by the token count of the whole
update over all ranks, however the update is split into batches.

Shapes: N real target tokens of the batch, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from ds_seq.data.batch import Batch
from ds_seq.models.output import ModelOutput
from ds_seq.names import Capture

if TYPE_CHECKING:
    from ds_seq.search.beam_search import AnyRank


class Current(NamedTuple):
    """The model as it is in an update, before the batch passes through it."""

    model: nn.Module
    update: int
    """Number of updates before this one, on which all draws depend."""
    any_rank: AnyRank | None = None
    """See `BeamSearch.search`; None if no forward is a collective."""


class Loss(NamedTuple):
    """A batch's loss, summed over its tokens."""

    total: Tensor
    """() sum to differentiate."""
    parts: dict[str, Tensor]
    """Detached, unweighted () sums by name; dividing by the number of tokens gives means per
    token."""
    tokens: Tensor | None = None
    """() part of `total` that compares the logits with the targets, without losses of routers and
    layers; None if that is all of it."""

    @property
    def of_tokens(self) -> Tensor:
        """() detached loss of the target tokens, by which models of different kinds compare."""
        return (self.total if self.tokens is None else self.tokens).detach()


class Criterion(ABC):
    """`criterion(output, batch)`; `output.logits` is (N, V), one row per real target token.

    Most criterions are stateless. A stateful one is notified when an update ends, and its state is
    saved in checkpoints.

    Attributes:
        training: False during validation, which must not change the state of a criterion.
        capture: what the model's output must contain in addition to logits and router losses.
        is_collective: whether ranks compute a loss together, because they share a teacher.
        num_passes: how often the model reads a batch in training, with other dropout each time. The
            rows of the logits are those of the first pass, then those of the second, and so on.
        prepares: whether `prepare` is called with each batch first.
    """

    training: bool = True
    capture: Capture = "none"
    is_collective: bool = False
    num_passes: int = 1
    prepares: bool = False

    def prepare(self, batch: Batch, current: Current) -> Batch:
        """Return the batch that the model is to read instead.

        It is what `__call__` receives, too. A collective if a forward is one: ranks with empty
        batches take part.

        Args:
            batch: batch of the data, on the device.
            current: the model, whose mode is restored.
        """
        return batch

    @abstractmethod
    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Compute the loss of one batch."""

    def train(self, mode: bool = True) -> None:
        """Switch to training, or to validation if `mode` is False; callers restore the mode."""
        self.training = mode

    def end_update(self, applied: bool) -> None:  # noqa: B027 - does nothing by default
        """End an update after all its batches; a collective operation.

        Args:
            applied: False if fp16 gradients overflowed, so that the batches do not count.
        """

    def state(self) -> dict[str, Tensor]:
        """Return this rank's state for a checkpoint; names are unique over all ranks."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - does nothing by default
        """Restore the state; inverse of `state`.

        Args:
            state: states of all ranks that saved it, whose number may differ from now.
        """


class Wrapper(Criterion):
    """A criterion that adds something to another one, whose state it has.

    Attributes:
        base: the other one.
    """

    def __init__(self, base: Criterion) -> None:
        self.base, self.capture, self.num_passes = base, base.capture, base.num_passes

    def prepare(self, batch: Batch, current: Current) -> Batch:
        """See `Criterion.prepare`."""
        return self.base.prepare(batch, current)

    def train(self, mode: bool = True) -> None:
        """See `Criterion.train`."""
        super().train(mode)
        self.base.train(mode)

    def end_update(self, applied: bool) -> None:
        """See `Criterion.end_update`."""
        self.base.end_update(applied)

    def state(self) -> dict[str, Tensor]:
        """Return the state of the base."""
        return self.base.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Criterion.load_state`."""
        self.base.load_state(state)


class PlainCriterion(Criterion):
    """A criterion that wraps a function, such as a plug-in."""

    def __init__(self, function: Callable[[ModelOutput, Batch], Loss]) -> None:
        self._function = function

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """See `Criterion.__call__`."""
        return self._function(output, batch)
