"""Selection of the tokens that are hard for the student (Wang et al., arXiv:2105.12967).

A token is hard if its negative log-likelihood is among the highest share `rate` of its batch, of
the most recent tokens, or of the most recent tokens of its source language (Gumma et al.,
arXiv:2304.09388).

Shapes: N real target tokens of a batch, M of them selected, L source languages.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from ds_seq import distributed
from ds_seq.data.batch import Batch

_COMMON = "all"  # queue of sentences without a tag


def hardest(values: Tensor, rate: float) -> float:
    """Return the threshold, the ceil(rate * count)-th largest value; minus infinity if count is 0.

    Args:
        values: (count,) float32 on any device.
        rate: share of the values at or above the threshold, in (0, 1].
    """
    count = len(values)
    if count == 0:
        return -math.inf
    # 0.55 * 100 is 55.000000000000007, whose ceiling would be one too high
    place = min(max(math.ceil(round(rate * count, 6)), 1), count)
    # numpy's selection is ten times as fast as torch.topk or kthvalue on a CPU, and using the
    # selected rows synchronizes the device anyway
    array = values.cpu().numpy()
    return float(np.partition(array, count - place)[count - place])


class TokenSelector(ABC):
    """Select the hard tokens of a batch, based on stored losses if needed.

    Attributes:
        training: False during validation, whose losses are not stored.
    """

    training: bool = True

    @abstractmethod
    def select(self, nll: Tensor, batch: Batch) -> Tensor:
        """Select tokens of a batch.

        Args:
            nll: (N,) float32 negative log-likelihood of each real target token.
            batch: batch of these tokens.

        Returns:
            (M,) int64 indices of the hard tokens, ascending.
        """

    def end_update(self, applied: bool) -> None:  # noqa: B027 - does nothing by default
        """See `Criterion.end_update`."""

    def state(self) -> dict[str, Tensor]:
        """See `Criterion.state`."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - does nothing by default
        """See `Criterion.load_state`."""


class BatchSelector(TokenSelector):
    """Compare the tokens of a batch with each other."""

    def __init__(self, rate: float) -> None:
        self._rate = rate

    def select(self, nll: Tensor, batch: Batch) -> Tensor:
        """See `TokenSelector.select`."""
        return (nll >= hardest(nll, self._rate)).nonzero().squeeze(1)


class QueueSelector(TokenSelector):
    """Compare tokens with the most recent ones, by source language if there are tags.

    A shared queue is equal on all ranks. Batches are compared with its contents after the last
    update, and the losses of an update are appended at its end in the order of the data, so the
    selection does not depend on the layout of the ranks. A private queue of a rank adds each batch
    before comparing it.

    A shared queue that is empty, as in the first update or for a language that is new, has nothing
    to compare with: all tokens are hard. The current batch cannot take part, because the selection
    would then depend on how an update is split into batches.

    Args:
        rate: share of the tokens that are hard; 1 selects all.
        size: largest number of losses in a queue.
        shared: whether all ranks share one queue or each rank has a private one.
        tags: ids of the language tags with which a source may start. Sentences without a tag share
            one queue; without tags, it is the only one.
    """

    def __init__(self, rate: float, size: int, shared: bool, tags: Collection[int] = ()) -> None:
        self._rate, self._size, self._shared = rate, size, shared
        self._tags = torch.tensor(sorted(tags), dtype=torch.int64)
        self._names = [*map(str, sorted(tags)), _COMMON]
        # Queues are never changed in place, so that going back only needs the old ones.
        self._queues = [torch.zeros(0) for _ in self._names]  # after the last update
        self._now = list(self._queues)  # a private queue also holds later batches
        self._thresholds = torch.full((len(self._names),), -math.inf)  # after the last update
        self._pending: list[tuple[Tensor, Tensor]] = []  # losses and languages, by micro-batch

    def select(self, nll: Tensor, batch: Batch) -> Tensor:
        """See `TokenSelector.select`; with an empty queue, every token is hard."""
        languages = self._languages(batch, nll)
        if not self._shared and self.training:
            self._append(self._now, nll, languages)
            thresholds = self._thresholds_of(self._now, set(languages.tolist()))
        else:
            thresholds = self._thresholds
            if self.training:
                self._pending.append((nll.detach(), languages))
        return (nll >= thresholds.to(nll.device)[languages]).nonzero().squeeze(1)

    def end_update(self, applied: bool) -> None:
        """Store or discard the losses of the update; a collective operation if shared."""
        pending, self._pending = self._pending, []
        if not applied:
            self._now = list(self._queues)
            return
        if self._shared:
            gathered = distributed.gather_pieces([_packed(*piece) for piece in pending])
            for piece in gathered:
                self._append(self._now, *_unpacked(piece))
        before, self._queues = self._queues, list(self._now)
        changed = {
            index
            for index, (old, new) in enumerate(zip(before, self._queues, strict=True))
            if old is not new
        }
        self._thresholds = torch.where(
            torch.tensor([index in changed for index in range(len(self._names))]),
            self._thresholds_of(self._queues, changed),
            self._thresholds,
        )

    def state(self) -> dict[str, Tensor]:
        """Return the queues, oldest value first; from rank 0 only if shared."""
        if self._shared and distributed.rank() > 0:
            return {}
        prefix = "" if self._shared else f"rank{distributed.rank()}."
        return {
            f"{prefix}queue.{name}": queue.clone()
            for name, queue in zip(self._names, self._queues, strict=True)
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore a shared queue, or for rank r a private one of old rank r mod their number."""
        ranks = [
            int(match[1]) for name in state if (match := re.match(r"rank(\d+)\.queue\.", name))
        ]
        prefix = ""
        if ranks and not (self._shared and any(name.startswith("queue.") for name in state)):
            old_rank = 0 if self._shared else distributed.rank() % (max(ranks) + 1)
            prefix = f"rank{old_rank}."
        for index, name in enumerate(self._names):
            values = state.get(f"{prefix}queue.{name}", torch.zeros(0))
            self._queues[index] = values.float().cpu()[-self._size :].clone()
        self._now, self._pending = list(self._queues), []
        self._thresholds = self._thresholds_of(self._queues, set(range(len(self._names))))

    def _languages(self, batch: Batch, nll: Tensor) -> Tensor:
        """Return the queue index (N,) of each real target token, on the device of nll (N,)."""
        if len(self._tags) == 0:
            return torch.zeros(len(nll), dtype=torch.int64, device=nll.device)
        tags, first = self._tags.to(nll.device), batch.inputs.source[:, 0].contiguous()
        index = torch.searchsorted(tags, first).clamp(max=len(tags) - 1)
        index = torch.where(tags[index] == first, index, len(tags))
        return index.repeat_interleave(batch.mask.sum(1), output_size=len(nll))

    def _append(self, queues: list[Tensor], nll: Tensor, languages: Tensor) -> None:
        """Append new values to the queues and drop the oldest."""
        nll, languages = nll.cpu(), languages.cpu()
        finite = nll.isfinite()
        nll, languages = nll[finite], languages[finite]
        for index in set(languages.tolist()):
            queues[index] = torch.cat([queues[index], nll[languages == index]])[-self._size :]

    def _thresholds_of(self, queues: list[Tensor], which: set[int]) -> Tensor:
        """Return the thresholds (L + 1,); minus infinity for queues not in `which`."""
        thresholds = [
            # a queue's own minimum would leave out tokens that are easier than all it has seen
            hardest(queue, self._rate) if index in which and self._rate < 1.0 else -math.inf
            for index, queue in enumerate(queues)
        ]
        return torch.tensor(thresholds)


def _packed(nll: Tensor, languages: Tensor) -> Tensor:
    """Pack the bits of the losses and the languages into one tensor (2, N) int32."""
    return torch.stack([nll.float().view(torch.int32), languages.int()])


def _unpacked(piece: Tensor) -> tuple[Tensor, Tensor]:
    return piece[0].contiguous().view(torch.float32), piece[1].long()
