"""Label-smoothed cross entropy, in the two common forms of that name.

`cross_entropy` is a short reference implementation. Training calls `smoothed_cross_entropy`, which
computes the same in less time and memory: it processes a few rows at a time while they are in the
cache, and writes their gradient in the forward. Only the logits and that gradient are ever stored
completely. Distillation (`ds_seq.criterions.token_loss`) uses the same functions. Both use
`ds_seq.criterions.loss_kernel` on a GPU that can run it.

Shapes: N real target tokens, R rows at a time, V vocabulary.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds_seq.criterions.base import Criterion, Loss
from ds_seq.data.batch import Batch
from ds_seq.models.output import ModelOutput
from ds_seq.names import Smoothing

# Logits to process at a time: on a CPU, 1 MB per thread for its cache, which is also enough to
# make the overhead of calls small.
_CPU_ELEMENTS = 1 << 18
# A GPU needs large blocks, but not all (N, V) in float32: 256 MB per tensor. Cross entropy of
# 16,384 bf16 rows of 32,768 took 11.1 ms on an NVIDIA H200, 15.5 ms with a quarter of this size.
_GPU_ELEMENTS = 1 << 26
_LARGE_SCORE = 100.0  # V scores of this size sum up to about 1e-6 of V nats in float32


class CrossEntropy(Criterion):
    """Label-smoothed cross entropy; parts `ce` (optimized) and `nll` (log of the perplexity)."""

    def __init__(self, label_smoothing: float, smoothing: Smoothing) -> None:
        self.label_smoothing, self.smoothing = label_smoothing, smoothing

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Sum over the real target tokens of `batch`."""
        loss, nll = smoothed_cross_entropy(
            output.logits, batch.real_labels, self.label_smoothing, self.smoothing
        )
        return Loss(loss, {"ce": loss.detach(), "nll": nll})


def cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float, form: Smoothing
) -> Tensor:
    """Compute the loss of `smoothed_cross_entropy`; a reference for readers and tests.

    Autograd differentiates it, at the cost of several (N, V) float32 tensors.

    Args:
        logits: (N, V).
        targets: (N,) int64.
        label_smoothing: probability mass taken from the correct class, in [0, 1).
        form: `fairseq` spreads that mass over the V - 1 wrong classes, `torch` over all V.

    Returns:
        The loss in nats, summed over rows.
    """
    log_probs = torch.log_softmax(logits, dim=1)
    vocab = logits.shape[1]
    wrong = label_smoothing / (vocab - 1 if form == "fairseq" else vocab)
    right = 1.0 - label_smoothing if form == "fairseq" else 1.0 - label_smoothing + wrong
    target_probs = torch.full_like(log_probs, wrong).scatter_(1, targets.unsqueeze(1), right)
    return -(target_probs * log_probs).sum()


def smoothed_cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float, form: Smoothing
) -> tuple[Tensor, Tensor]:
    """Sum the label-smoothed loss and the plain negative log-likelihood over rows.

    Args:
        logits: (N, V), any floating dtype; the arithmetic is float32.
        targets: (N,) int64.
        label_smoothing: probability mass taken from the correct class, in [0, 1).
        form: see `smoothing_weights`.

    Returns:
        (loss, nll): float32 scalars, in nats; only the first is differentiable.
    """
    smoothing = smoothing_weights(label_smoothing, logits.shape[1], form)
    ce, nll = _CrossEntropy.apply(logits, targets, smoothing)  # type: ignore[no-untyped-call]
    return ce, nll


class _CrossEntropy(torch.autograd.Function):
    """Store the gradient instead of probabilities: one (N, V) tensor, no second softmax."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, smoothing: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        gradient = LogitGradient(logits, bound=1.0) if ctx.needs_input_grad[0] else None
        sums = LikelihoodSums(logits, smoothing)
        kernel = loss_kernel(logits)
        if kernel is not None:
            weights = kernel.Weights(smoothing, ce=1.0, kd=0.0, temperature=1.0)
            kernel.run_loss_kernel(logits, targets, weights, sums, gradient)
        for rows in row_slices(logits) if kernel is None else ():
            token = targets[rows].unsqueeze(1)  # (R, 1)
            place = None if gradient is None else gradient.place(rows)
            softmax = softmax_rows(logits[rows], place)
            sums.note(rows, softmax, token)
            if gradient is not None:
                put_cross_entropy(gradient, rows, softmax.probs, token, smoothing, weight=1.0)
        keep_gradient(ctx, logits, gradient)
        ce, nll = sums.cross_entropy(), sums.nll.sum()
        ctx.mark_non_differentiable(nll)
        return ce, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ce: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        return kept_gradient(ctx, grad_ce), None, None


def smoothing_weights(
    label_smoothing: float, num_classes: int, form: Smoothing
) -> tuple[float, float]:
    """Return the factors (a, b) of the loss `a * nll + b * sum_v(-log p_v)`.

    `fairseq` spreads the smoothing over the V - 1 wrong classes, `torch` over all V. In both forms,
    the total mass `a + b * V` is 1.
    """
    if form == "fairseq":
        each = label_smoothing / (num_classes - 1)
        return 1.0 - label_smoothing - each, each
    return 1.0 - label_smoothing, label_smoothing / num_classes


class Softmax(NamedTuple):
    """A distribution over columns, in both forms that a loss needs."""

    scores: Tensor
    """(R, V) scores in their original dtype."""
    probs: Tensor
    """(R, V) softmax of the scores."""
    top: Tensor
    """(R, 1) largest score of each row, float32."""
    log_sum: Tensor
    """(R, 1) logarithm of the sum of exp(scores - top): log p = (scores - top) - log_sum. A sum of
    `top` and `log_sum` would round a logarithm of about 10 to the digits of a large score."""


def softmax_rows(scores: Tensor, out: Tensor | None = None, top: Tensor | None = None) -> Softmax:
    """Compute the softmax over the last dimension and the logarithm of its divisor.

    The largest probability is 1 / sum(exp(score - largest score)), which gives the divisor by two
    passes for maxima. These cost a third of a logarithm or exponential of every element.

    Args:
        scores: (R, V), any floating dtype; not converted. Half precision suffices for the values
            that a loss reads, but not for arithmetic between scores.
        out: (R, V) float32 tensor for the probabilities; None creates a new one.
        top: (R, 1) largest scores, if known.
    """
    probs = torch.softmax(scores, -1, dtype=torch.float32, out=out)
    top = scores.amax(-1, True).float() if top is None else top
    return Softmax(scores, probs, top, probs.amax(-1, True).log_().neg_())


def are_large(tops: Tensor) -> bool:
    """Return whether float32 sums over scores with these maxima (R, ...) would lose digits."""
    return len(tops) > 0 and float(tops.abs().max()) > _LARGE_SCORE


class LikelihoodSums:
    """The terms of the cross entropy per token.

    Args:
        logits: (N, V), whose rows will be passed to `note`.
        smoothing: factors returned by `smoothing_weights`.

    Attributes:
        nll: (N,) float32, -log p of the correct token, filled in by `note`.
        spread: (N,) float32, sum of -log p over all tokens; filled in only with smoothing.
    """

    def __init__(self, logits: Tensor, smoothing: tuple[float, float]) -> None:
        self._smoothing = smoothing
        self.nll, self.spread = logits.new_zeros((2, len(logits)), dtype=torch.float32).unbind()

    def note(self, rows: slice, softmax: Softmax, token: Tensor) -> None:
        """Store the terms of some rows, whose correct tokens are `token` (R, 1)."""
        scores, top, log_sum = softmax.scores, softmax.top, softmax.log_sum
        self.nll[rows] = (top - scores.gather(1, token) + log_sum).squeeze(1)
        if self._smoothing[1]:
            below = _sum_below(scores, top.squeeze(1))
            self.spread[rows] = log_sum.squeeze(1) * scores.shape[1] + below

    def cross_entropy(self) -> Tensor:
        """Return the label-smoothed loss (), summed over all rows."""
        a, b = self._smoothing
        return a * self.nll.sum() + b * self.spread.sum()


class LogitGradient:
    """An (N, V) gradient that is filled a few rows at a time, in the dtype of the logits.

    The smallest float16 number is 6e-8, and the loss scale is applied only in the backward, too
    late for smaller values. So in float16, everything is stored multiplied by a power of two.

    Args:
        logits: tensor of the gradient's shape and dtype.
        bound: upper bound of the gradient's elements.

    Attributes:
        buffer: (N, V) gradient times `scale`.
        scale: that power of two; 1 in other precisions.
        largest: largest number that the buffer can hold.
    """

    def __init__(self, logits: Tensor, bound: float) -> None:
        self.buffer = torch.empty_like(logits, memory_format=torch.contiguous_format)
        self.scale, self.largest = 1.0, math.inf
        if logits.dtype == torch.float16:
            self.largest = torch.finfo(torch.float16).max
            self.scale = 2.0 ** math.floor(math.log2(self.largest / max(bound, 1e-3)))

    def place(self, rows: slice) -> Tensor | None:
        """Return the memory of these rows (R, V) to compute in, or None if they are not float32.

        The result still has to be passed to `put`.
        """
        return self.buffer[rows] if self.buffer.dtype == torch.float32 else None

    def put(self, rows: slice, block: Tensor) -> None:
        """Set some rows to `block` (R, V) float32, which may be overwritten."""
        if self.buffer.dtype != torch.float32:  # else it was computed in place
            self.buffer[rows] = self._in_range(block)

    def put_affine(self, rows: slice, block: Tensor, weight: float, shift: float) -> None:
        """Set some rows to `weight * block + shift` in one pass over the memory.

        No element may exceed the bound, because nothing is clipped here.
        """
        offset = torch.tensor(shift * self.scale)  # on the host: passed with the kernel call
        torch.add(offset, block, alpha=weight * self.scale, out=self.buffer[rows])

    def add(self, rows: Tensor, block: Tensor) -> None:
        """Add `block` (R, V) float32, which may be overwritten, to the rows with these indices."""
        if self.buffer.dtype == torch.float32:
            self.buffer.index_add_(0, rows, block)
            return
        stored = self.buffer.index_select(0, rows).float().div_(self.scale)
        self.buffer[rows] = self._in_range(block.add_(stored)).to(self.buffer.dtype)

    def _in_range(self, block: Tensor) -> Tensor:
        """Scale and clip a block for the buffer, without converting its dtype."""
        if self.buffer.dtype != torch.float16:
            return block
        return block.mul_(self.scale).clamp_(-self.largest, self.largest)


def put_cross_entropy(
    gradient: LogitGradient,
    rows: slice,
    probs: Tensor,
    token: Tensor,
    smoothing: tuple[float, float],
    weight: float,
) -> None:
    """Set some rows to `weight` times the gradient of the cross entropy.

    On a GPU, every pass over (R, V) numbers costs memory traffic, so one pass applies the weight,
    subtracts the smoothing, and converts to the dtype of the logits. On a CPU, where the block is
    in the cache, three simple passes are faster.

    Args:
        gradient: gradient to fill.
        rows: rows to set.
        probs: (R, V) float32 probabilities, in `LogitGradient.place` if not None; overwritten.
        token: (R, 1) correct tokens.
        smoothing: factors returned by `smoothing_weights`.
        weight: weight of the cross entropy.
    """
    if _in_one_pass(probs):
        a, b = smoothing
        probs.scatter_add_(1, token, probs.new_full((), -a).expand_as(token))
        gradient.put_affine(rows, probs, weight, -b * weight)
        return
    if weight != 1.0:
        probs.mul_(weight)
    subtract_targets(probs, token, smoothing, weight)
    gradient.put(rows, probs)


def subtract_targets(
    block: Tensor, token: Tensor, smoothing: tuple[float, float], weight: float
) -> None:
    """Convert `weight * probs` (R, V) to `weight` times the gradient, in place."""
    if not weight:
        return
    a, b = (weight * factor for factor in smoothing)
    if b:
        block.sub_(b)
    block.scatter_add_(1, token, block.new_full((), -a).expand_as(token))


def keep_gradient(ctx: Any, logits: Tensor, gradient: LogitGradient | None) -> None:
    """Store the gradient for `kept_gradient`, in the forward of an autograd function."""
    ctx.scale = 1.0 if gradient is None else gradient.scale
    ctx.save_for_backward(logits.new_empty(0) if gradient is None else gradient.buffer)


def kept_gradient(ctx: Any, factor: Tensor) -> Tensor:
    """Return the stored gradient (N, V) times a float32 scalar, in the backward.

    The product is computed in place, because the tensor is large. A second backward through the
    same graph would find it modified, which autograd detects and rejects.
    """
    (gradient,) = ctx.saved_tensors
    _multiply_in_place(gradient, factor / ctx.scale)
    result: Tensor = gradient
    return result


def _multiply_in_place(gradient: Tensor, factor: Tensor) -> None:
    """Compute `gradient *= factor` in float32 arithmetic for a gradient (N, V) of any precision.

    The factor may exceed the range of half precision, to which a product of a tensor and a scalar
    would round it.
    """
    if gradient.dtype in (torch.float32, torch.float64):
        gradient.mul_(factor)
    elif gradient.is_cuda:
        # as a matrix, the factor determines the dtype of the arithmetic, and the kernel converts
        # each element on the fly; on a CPU, the same call makes a float32 copy of the gradient
        torch.mul(gradient, factor.view(1, 1), out=gradient)
    else:
        for rows in row_slices(gradient):
            gradient[rows] = gradient[rows].float().mul_(factor)


def _sum_below(scores: Tensor, top: Tensor) -> Tensor:
    """Return `(top - scores).sum(-1)` (R,) float32 for `scores` (R, V) and their maxima (R,).

    Without a second tensor of that size where a difference of sums is precise enough: on a CPU for
    scores of usual size, elsewhere in float64.
    """
    if not scores.is_cuda:
        if are_large(top):
            return (top.unsqueeze(1) - scores).sum(-1)
        return top * scores.shape[1] - scores.sum(-1, dtype=torch.float32)
    total = scores.sum(-1, dtype=torch.float64)
    return (top.double() * scores.shape[1] - total).float()


def loss_kernel(logits: Tensor) -> ModuleType | None:
    """Return the module `ds_seq.criterions.loss_kernel` if it can process these logits.

    It needs an NVIDIA GPU, Triton and a C compiler. `DS_SEQ_TRITON=0` in the environment turns it
    off.
    """
    if not logits.is_cuda or logits.dtype == torch.float64:
        return None
    return None if os.environ.get("DS_SEQ_TRITON") == "0" else _working_kernel()


@functools.cache
def _working_kernel() -> ModuleType | None:
    try:
        from ds_seq.criterions import loss_kernel
    except ImportError:  # torch was built without Triton
        return None
    return loss_kernel if loss_kernel.works() else None


def _in_one_pass(block: Tensor) -> bool:
    return block.is_cuda


def rows_at_a_time(logits: Tensor) -> int:
    """Return the number of rows of logits (N, V) to process together."""
    on_cpu = logits.device.type == "cpu"
    elements = _CPU_ELEMENTS * torch.get_num_threads() if on_cpu else _GPU_ELEMENTS
    return max(elements // max(logits.shape[1], 1), 1)


def row_slices(logits: Tensor) -> Iterator[slice]:
    """Iterate over the rows of logits (N, V), a few at a time."""
    step = rows_at_a_time(logits)
    for start in range(0, len(logits), step):
        yield slice(start, start + step)
