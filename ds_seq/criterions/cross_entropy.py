"""Label-smoothed cross entropy, in the two forms that the field uses under one name.

Legend: ``N`` real target tokens, ``V`` vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds_seq.criterions.base import Criterion, Loss
from ds_seq.criterions.token_loss import TokenTargets, smoothing_weights, token_loss
from ds_seq.data.batch import Batch
from ds_seq.models.output import ModelOutput
from ds_seq.names import Smoothing


def cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float, form: Smoothing
) -> Tensor:
    """What `smoothed_cross_entropy` computes, written down plainly: for reading and for tests.

    Autograd differentiates it, at the price of several (N, V) float32 tensors.

    Args:
        logits: (N, V).
        targets: (N,) int64.
        label_smoothing: mass taken from the true class, in [0, 1).
        form: ``fairseq`` spreads that mass over the V - 1 wrong classes, ``torch`` over all V.

    Returns:
        The loss in nats, summed over rows.
    """
    log_probs = torch.log_softmax(logits, dim=1)
    vocab = logits.shape[1]
    wrong = label_smoothing / (vocab - 1 if form == "fairseq" else vocab)
    right = 1.0 - label_smoothing if form == "fairseq" else 1.0 - label_smoothing + wrong
    wanted = torch.full_like(log_probs, wrong).scatter_(1, targets.unsqueeze(1), right)
    return -(wanted * log_probs).sum()


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

    def __init__(self, label_smoothing: float, smoothing: Smoothing) -> None:
        self.label_smoothing, self.smoothing = label_smoothing, smoothing

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Sum over the real target tokens of ``batch``."""
        loss, nll = smoothed_cross_entropy(
            output.logits, batch.real_labels, self.label_smoothing, self.smoothing
        )
        return Loss(loss, {"ce": loss.detach(), "nll": nll})
