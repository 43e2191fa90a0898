"""R-Drop: a batch passes through the model twice, and both results should agree.

Dropout makes a submodel of each pass. Besides the cross entropy of both, their distributions are
pulled together by a symmetric divergence (Wu et al., NeurIPS 2021, arXiv:2106.14448):

    1/2 (ce(p) + ce(q))  +  weight / 2 * 1/2 (KL(p || q) + KL(q || p))

That is half of the paper's loss, so that `weight` is the paper's alpha and the loss of a token has
the size of a plain cross entropy.

Shapes: N real target tokens of the batch, R rows at a time, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds_seq.criterions.base import Criterion, Loss
from ds_seq.criterions.cross_entropy import (
    CrossEntropy,
    LikelihoodSums,
    LogitGradient,
    Softmax,
    keep_gradient,
    kept_gradient,
    row_slices,
    smoothing_weights,
    softmax_rows,
    subtract_targets,
)
from ds_seq.data.batch import Batch
from ds_seq.models.output import ModelOutput
from ds_seq.names import Smoothing

_HEADROOM = 64.0
"""Largest gradient of the divergence that float16 must hold; it grows like a logarithm."""


class RDrop(Criterion):
    """Cross entropy of two passes and their divergence; parts `ce`, `nll` and `r_drop`.

    A validation passes each batch once, and computes its cross entropy alone.

    Args:
        weight: weight of the divergence, the paper's alpha.
        label_smoothing: probability mass taken from the correct class.
        smoothing: which classes share it; see `smoothing_weights`.
    """

    num_passes = 2

    def __init__(self, weight: float, label_smoothing: float, smoothing: Smoothing) -> None:
        self.weight = weight
        self.cross_entropy = CrossEntropy(label_smoothing, smoothing)

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Sum over the real target tokens of `batch`, means over both passes."""
        if not self.training and len(output.logits) == batch.num_tokens:
            return self.cross_entropy(output, batch)
        plain = self.cross_entropy
        smoothing = smoothing_weights(
            plain.label_smoothing, output.logits.shape[1], plain.smoothing
        )
        total, ce, nll, divergence = _RDrop.apply(  # type: ignore[no-untyped-call]
            output.logits, batch.real_labels, smoothing, self.weight
        )
        return Loss(total, {"ce": ce, "nll": nll, "r_drop": divergence}, ce)


class _Pass(NamedTuple):
    """Some rows of one pass."""

    rows: slice
    softmax: Softmax
    divergence: Tensor
    """(R, 1) KL(this pass || the other), in nats."""


class _RDrop(torch.autograd.Function):
    """Write the gradient in the forward, as `ds_seq.criterions.cross_entropy` does."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, smoothing: tuple[float, float], weight: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = len(targets)
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = LogitGradient(logits, bound=0.5 + weight * _HEADROOM / 4)
        sums = LikelihoodSums(logits, smoothing)
        divergence = logits.new_zeros((), dtype=torch.float32)
        for rows in row_slices(logits[:count]):
            first = slice(rows.start, min(rows.stop, count))
            second = slice(first.start + count, first.stop + count)
            token = targets[first].unsqueeze(1)
            left, right, ratio = _compare(logits, first, second)
            divergence += 0.5 * (left.divergence + right.divergence).sum()
            for this in (left, right):
                sums.note(this.rows, this.softmax, token)
            if gradient is not None:
                gap = (left.softmax.probs - right.softmax.probs).mul_(weight / 4)
                _put(gradient, left, ratio, gap, token, smoothing, weight)
                _put(gradient, right, ratio.neg_(), gap.neg_(), token, smoothing, weight)
        keep_gradient(ctx, logits, gradient)
        ce, nll = 0.5 * sums.cross_entropy(), 0.5 * sums.nll.sum()
        ctx.mark_non_differentiable(ce, nll, divergence)
        return ce + 0.5 * weight * divergence, ce, nll, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        return kept_gradient(ctx, grad), None, None, None


def _compare(logits: Tensor, first: slice, second: slice) -> tuple[_Pass, _Pass, Tensor]:
    """Return the rows of both passes, and log(p / q) of their probabilities (R, V) float32."""
    p, q = softmax_rows(logits[first]), softmax_rows(logits[second])
    ratio = logits[first].float() - p.top
    ratio.sub_(p.log_sum).sub_(logits[second].float() - q.top).add_(q.log_sum)
    forward = (p.probs * ratio).sum(-1, True)
    backward = -(q.probs * ratio).sum(-1, True)
    return _Pass(first, p, forward), _Pass(second, q, backward), ratio


def _put(
    gradient: LogitGradient,
    this: _Pass,
    ratio: Tensor,
    gap: Tensor,
    token: Tensor,
    smoothing: tuple[float, float],
    weight: float,
) -> None:
    """Set the gradient of the rows of one pass.

    With probabilities p of this pass and q of the other, the gradient of KL(p || q) + KL(q || p) is
    p (log(p / q) - KL(p || q)) + p - q.

    Args:
        gradient: gradient to fill.
        this: the rows, whose probabilities are overwritten.
        ratio: (R, V) log(p / q).
        gap: (R, V) p - q times `weight / 4`.
        token: (R, 1) correct tokens.
        smoothing: factors returned by `smoothing_weights`.
        weight: weight of the divergence.
    """
    probs = this.softmax.probs
    pull = (ratio - this.divergence).mul_(weight / 4).add_(0.5).mul_(probs).add_(gap)
    subtract_targets(pull, token, smoothing, weight=0.5)
    place = gradient.place(this.rows)
    if place is None:
        gradient.put(this.rows, pull)
    else:
        place.copy_(pull)
