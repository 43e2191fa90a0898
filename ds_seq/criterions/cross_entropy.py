"""Label-smoothed cross entropy, in the two forms that the field uses under one name.

Legend: ``N`` real target tokens, ``V`` vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from ds_seq.criterions.base import Criterion, Loss, real_targets
from ds_seq.criterions.token_loss import TokenTargets, smoothing_weights, token_loss
from ds_seq.data.dataset import Batch
from ds_seq.models.output import ModelOutput
from ds_seq.names import Smoothing


def smoothed_cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float, form: Smoothing
) -> tuple[Tensor, Tensor]:
    """Sum over rows of the label-smoothed loss and of the plain negative log-likelihood.

    Args:
        logits: (N, V), any floating dtype; the arithmetic is float32.
        targets: (N,) int64.
        label_smoothing: mass taken from the true class, in [0, 1).
        form: see `smoothing_weights`.

    Returns:
        (loss, nll): float32 scalars, in nats; only the first is differentiable.
    """
    smoothing = smoothing_weights(label_smoothing, logits.shape[-1], form)
    found = token_loss(logits, TokenTargets(targets), smoothing)
    return found.total, found.nll


class CrossEntropy(Criterion):
    """Label-smoothed cross entropy; parts ``ce`` (what is optimised) and ``nll`` (perplexity's
    log)."""

    def __init__(self, label_smoothing: float, smoothing: Smoothing, pad_id: int) -> None:
        self.label_smoothing, self.smoothing, self.pad_id = label_smoothing, smoothing, pad_id

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Sum over the real target tokens of ``batch``."""
        targets = real_targets(batch, self.pad_id)
        loss, nll = smoothed_cross_entropy(
            output.logits, targets, self.label_smoothing, self.smoothing
        )
        return Loss(loss, {"ce": loss.detach(), "nll": nll})
