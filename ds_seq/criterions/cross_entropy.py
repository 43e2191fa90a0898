"""Label-smoothed cross entropy, in the two forms that the field uses under one name.

Legend: ``N`` real target tokens, ``V`` vocabulary.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ds_seq.criterions.base import Loss, real_targets
from ds_seq.data.dataset import Batch
from ds_seq.models.output import ModelOutput

Smoothing = Literal["fairseq", "torch"]
_CHUNK_ELEMENTS = 1 << 24  # rows * V of half-precision logits that are widened to float32 at a time


def smoothing_weights(
    label_smoothing: float, num_classes: int, form: Smoothing
) -> tuple[float, float]:
    """Factors (a, b) of ``a * nll + b * sum_v(-log p_v)``.

    ``fairseq`` spreads the smoothing over the V - 1 wrong classes, ``torch`` over all V. Both leave
    a total mass ``a + b * V`` of 1.
    """
    if form == "fairseq":
        each = label_smoothing / (num_classes - 1)
        return 1.0 - label_smoothing - each, each
    return 1.0 - label_smoothing, label_smoothing / num_classes


class _SmoothedCrossEntropy(torch.autograd.Function):
    """Keeps the gradient instead of the log-probabilities: one (N, V) tensor, no second softmax."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, a: float, b: float
    ) -> tuple[Tensor, Tensor]:
        needs_grad = ctx.needs_input_grad[0]
        num_rows, num_classes = logits.shape
        loss, nll = logits.new_zeros((2,), dtype=torch.float32).unbind()
        grad = torch.empty_like(logits) if needs_grad and logits.dtype != torch.float32 else None
        step = num_rows if logits.dtype == torch.float32 else max(_CHUNK_ELEMENTS // num_classes, 1)
        for start in range(0, num_rows, max(step, 1)):
            rows = slice(start, start + step)
            target = targets[rows].unsqueeze(1)
            log_p = torch.log_softmax(logits[rows], dim=-1, dtype=torch.float32)
            chunk_nll = -log_p.gather(1, target).sum()
            nll = nll + chunk_nll
            loss = loss + a * chunk_nll - (b * log_p.sum() if b else 0.0)
            if needs_grad:
                chunk = log_p.exp_()
                if b:
                    chunk.sub_(b)
                chunk.scatter_add_(1, target, chunk.new_full((), -a).expand_as(target))
                if grad is None:
                    grad = chunk  # float32 logits come as one chunk
                else:
                    grad[rows] = chunk
        if grad is None:  # evaluation, or not one row
            grad = torch.empty_like(logits) if needs_grad else logits.new_empty(0)
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        # In place: the tensor is large and was made for this. A second backward through the same
        # graph would find it changed, which autograd notices and refuses.
        return grad.mul_(grads[0]), None, None, None


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
    a, b = smoothing_weights(label_smoothing, logits.shape[-1], form)
    loss, nll = _SmoothedCrossEntropy.apply(logits, targets, a, b)  # type: ignore[no-untyped-call]
    return loss, nll


class CrossEntropy:
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
