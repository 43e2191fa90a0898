"""A criterion: cross entropy that looks away from what is easy (Lin et al., 2017)."""

from __future__ import annotations

from ds_seq.criterions.base import Criterion, Loss
from ds_seq.data.batch import Batch
from ds_seq.models.output import ModelOutput


class Focal(Criterion):
    """The sum of `-(1 - p) ** gamma * log p`.

    Args:
        gamma: 0 is cross entropy.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        self.gamma = gamma

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """See `Criterion`."""
        scores = output.logits.float().log_softmax(-1)
        scores = scores.gather(1, batch.labels[batch.mask][:, None]).squeeze(1)  # (N,)
        total = -((1.0 - scores.exp()) ** self.gamma * scores).sum()
        return Loss(total, {"focal": total.detach()})
