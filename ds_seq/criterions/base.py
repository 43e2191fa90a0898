"""What every criterion is: a function of a model's output and a batch.

All terms are sums over target tokens, so that one divisor, the token count of the whole update over
all ranks, is right for every term, however the update is cut into batches.
Legend: ``N`` real target tokens of the batch, ``V`` vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from ds_seq.data.dataset import Batch
from ds_seq.models.output import ModelOutput


class Loss(NamedTuple):
    """A batch's loss, summed over its tokens."""

    total: Tensor
    """() what is differentiated."""
    parts: dict[str, Tensor]
    """Detached () sums by name, unweighted; divided by the number of tokens they are per-token
    means."""


class Criterion(Protocol):
    """``criterion(output, batch)``; ``output.logits`` is (N, V), one row per real target token."""

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Compute the loss of one batch."""
        ...


def real_targets(batch: Batch, pad_id: int) -> Tensor:
    """(N,) targets of the batch in the order of the rows of ``logits``."""
    return batch.tgt_out[batch.tgt_out != pad_id]
