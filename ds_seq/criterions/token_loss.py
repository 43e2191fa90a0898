"""Cross entropy and distillation of target tokens in one pass, with one gradient.

Both terms depend on the same (N, V) logits. As two autograd functions, they would create two
gradients of that size, and a third for their sum. Here, as in `ds_seq.criterions.cross_entropy`,
rows are processed a few at a time while they are in the cache, and their gradient is written once,
in the forward. Only the logits, the teacher's logits and that gradient are ever stored completely.

With softmax p, and p_T at temperature T, the gradient of a row is

    ce_weight * (p - smoothed targets)  +  weight * T * (scale * p_T - rest)

where scale and rest are fields of `ds_seq.criterions.divergence.Pull`.

Shapes: N real target tokens, R rows at a time, V vocabulary, K tokens with
teacher scores, M selected tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds_seq.criterions.cross_entropy import (
    LikelihoodSums,
    LogitGradient,
    Softmax,
    keep_gradient,
    kept_gradient,
    loss_kernel,
    put_cross_entropy,
    row_slices,
    rows_at_a_time,
    softmax_rows,
    subtract_targets,
)
from ds_seq.criterions.divergence import Pull, diverge, shifted
from ds_seq.data.batch import TopTokens
from ds_seq.names import Divergence

# Largest gradient of each divergence that float16 must hold without clipping. The gradient of
# reverse KL is unbounded: it grows with the logarithm of a teacher probability close to 0.
_HEADROOM: dict[Divergence, float] = {"forward_kl": 1.0, "reverse_kl": 64.0, "js": 1.0, "tv": 1.0}

Select = Callable[[Tensor], Tensor]
"""(N,) negative log-likelihoods of a batch's tokens -> (M,) rows to distill."""


@dataclass(frozen=True)
class Distil:
    """How the student's distributions are compared with the teacher's.

    Attributes:
        weight: weight of the term in the total.
        divergence: kind of divergence.
        temperature: divisor of the scores of both models, T. The term is multiplied by its square,
            which preserves the size of the gradient (Hinton et al., arXiv:1503.02531).
        top_k: number of most probable tokens kept of the teacher's distribution; None for all.
    """

    weight: float
    divergence: Divergence
    temperature: float
    top_k: int | None


@dataclass(frozen=True)
class TokenTargets:
    """The targets of a batch's logits.

    Attributes:
        tokens: (N,) int64 correct tokens.
        teacher: (N, V) scores of a teacher, or its top tokens; None for no distillation.
        select: function that selects the rows to distill; None for all rows.
    """

    tokens: Tensor
    teacher: Tensor | TopTokens | None = None
    select: Select | None = None


class TokenLoss(NamedTuple):
    """Float32 scalars, summed over tokens. Only `total` can be differentiated."""

    total: Tensor
    ce: Tensor
    nll: Tensor
    kd: Tensor
    kd_tokens: Tensor


def token_loss(
    logits: Tensor,
    targets: TokenTargets,
    smoothing: tuple[float, float],
    ce_weight: float,
    distil: Distil,
) -> TokenLoss:
    """Sum `ce_weight * cross_entropy + distil.weight * T^2 * divergence` over tokens.

    Args:
        logits: (N, V), any floating dtype; the arithmetic is float32.
        targets: correct tokens and teacher scores.
        smoothing: factors returned by `smoothing_weights`.
        ce_weight: weight of the cross entropy; 0 leaves out its gradient.
        distil: how to compare with the teacher.

    Returns:
        The total, in nats, and its unweighted terms.
    """
    terms = _TokenLoss.apply(  # type: ignore[no-untyped-call]
        logits, targets, smoothing, ce_weight, distil
    )
    return TokenLoss(*terms)


class _TokenLoss(torch.autograd.Function):
    """Store the gradient instead of distributions: one (N, V) tensor, no second softmax."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: TokenTargets,
        smoothing: tuple[float, float],
        ce_weight: float,
        distil: Distil,
    ) -> tuple[Tensor, ...]:
        work = _Forward(logits, targets, smoothing, ce_weight, distil, ctx.needs_input_grad[0])
        terms = work.run()
        keep_gradient(ctx, logits, work.gradient)
        ctx.mark_non_differentiable(*terms[1:])
        return tuple(terms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return kept_gradient(ctx, grads[0]), None, None, None, None


class _Forward:
    """One forward pass of `_TokenLoss`.

    If all rows are distilled, one pass suffices. If rows are selected by the likelihoods of the
    whole batch, a second pass distills the selected ones.
    """

    def __init__(
        self,
        logits: Tensor,
        targets: TokenTargets,
        smoothing: tuple[float, float],
        ce_weight: float,
        distil: Distil,
        needs_grad: bool,
    ) -> None:
        self._logits, self._targets, self._distil = logits, targets, distil
        self._smoothing, self._ce_weight = smoothing, ce_weight
        self._distils_all = targets.teacher is not None and targets.select is None
        # 1 / temperature from the chain rule, times its square from the term
        self._kd_weight = 0.0 if targets.teacher is None else distil.weight * distil.temperature
        bound = ce_weight + self._kd_weight * _HEADROOM[distil.divergence]
        self.gradient = LogitGradient(logits, bound) if needs_grad else None
        self._sums = LikelihoodSums(logits, smoothing)
        self._divergences = logits.new_zeros(len(logits), dtype=torch.float32)

    def run(self) -> TokenLoss:
        """Compute the loss, and the gradient if needed."""
        kernel = loss_kernel(self._logits)
        if kernel is None:
            for block in row_slices(self._logits):
                self._first_pass(block)
        else:
            self._run_kernel(kernel, self._distils_all)
        num_distilled = len(self._logits) if self._distils_all else 0
        if self._targets.teacher is not None and self._targets.select is not None:
            selected = self._targets.select(self._sums.nll)
            num_distilled = len(selected)
            if kernel is None:
                for rows in torch.split(selected, rows_at_a_time(self._logits)):
                    self._second_pass(rows)
            else:
                self._run_kernel(kernel, True, selected)
        ce, nll = self._sums.cross_entropy(), self._sums.nll.sum()
        kd = self._distil.temperature**2 * self._divergences.sum()
        total = torch.zeros_like(nll)
        for weight, term in ((self._ce_weight, ce), (self._distil.weight, kd)):
            if weight:  # 0 times infinity would be NaN
                total = total + weight * term
        return TokenLoss(total, ce, nll, kd, nll.new_full((), float(num_distilled)))

    def _run_kernel(self, kernel: ModuleType, distils: bool, rows: Tensor | None = None) -> None:
        """Compute all terms of some rows (R,), or of all rows, by `ds_seq.criterions.loss_kernel`.

        Args:
            kernel: that module.
            distils: whether distillation is among the terms.
            rows: indices of the rows; None for all.
        """
        how, teacher = self._distil, self._targets.teacher
        weights = kernel.Weights(self._smoothing, self._ce_weight, self._kd_weight, how.temperature)
        compared = None
        if distils and teacher is not None:
            scores: Tensor | TopTokens = teacher
            ids = None
            if isinstance(teacher, TopTokens):
                ids, scores = teacher
            elif how.top_k is not None and how.top_k < teacher.shape[1]:
                scores, ids = teacher.topk(how.top_k, dim=1)
            compared = kernel.TeacherRows(how.divergence, scores, ids, self._divergences)
        kernel.run_loss_kernel(
            self._logits, self._targets.tokens, weights, self._sums, self.gradient, compared, rows
        )

    def _first_pass(self, rows: slice) -> None:
        """Compute cross entropy of some rows, and distillation unless rows are selected."""
        gradient, token = self.gradient, self._targets.tokens[rows].unsqueeze(1)
        scores, top = self._logits[rows], None
        if self._distils_all:  # divergences need float32 scores for their arithmetic
            scores, top = shifted(scores)
        student = softmax_rows(scores, None if gradient is None else gradient.place(rows), top)
        self._sums.note(rows, student, token)
        pulled = self._diverge(student, rows) if self._distils_all else None
        if gradient is None:
            return
        weight, block = self._ce_weight, student.probs
        if pulled is None or not self._kd_weight:
            put_cross_entropy(gradient, rows, block, token, self._smoothing, weight)
            return
        at_temperature, pull = pulled
        if self._distil.temperature == 1.0:  # both terms have the same softmax
            _divergence_gradient(block, pull, self._kd_weight, extra=weight)
        else:
            _scale(block, weight)
            block.add_(_divergence_gradient(at_temperature.probs, pull, self._kd_weight, extra=0.0))
        subtract_targets(block, token, self._smoothing, weight)
        gradient.put(rows, block)

    def _second_pass(self, rows: Tensor) -> None:
        """Compute the distillation of the rows with these indices (R,)."""
        scores, top = shifted(self._logits.index_select(0, rows))
        student = softmax_rows(scores, top=top)
        at_temperature, pull = self._diverge(student, rows)
        if self.gradient is not None and self._kd_weight:
            block = _divergence_gradient(at_temperature.probs, pull, self._kd_weight, extra=0.0)
            self.gradient.add(rows, block)

    def _diverge(self, student: Softmax, rows: slice | Tensor) -> tuple[Softmax, Pull]:
        """Compare some rows with the teacher.

        Returns:
            The student's softmax at the temperature, and the divergence with its gradient.
        """
        scores, ids = self._teacher_scores(rows)
        temperature = self._distil.temperature
        if temperature != 1.0:
            scores = scores.float() / temperature
            student = softmax_rows(student.scores / temperature, top=student.top / temperature)
        pull = diverge(self._distil.divergence, student, scores, ids)
        self._divergences[rows] = pull.value.squeeze(1)
        return student, pull

    def _teacher_scores(self, rows: slice | Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scores of the teacher (R, K) and their columns; None for all columns."""
        teacher, top_k = self._targets.teacher, self._distil.top_k
        if isinstance(teacher, TopTokens):
            return teacher.log_probs[rows], teacher.ids[rows]
        assert teacher is not None
        scores = teacher[rows]
        if top_k is None or top_k >= scores.shape[1]:
            return scores, None
        best = scores.topk(top_k, dim=1)
        return best.values, best.indices


def _divergence_gradient(probs: Tensor, pull: Pull, weight: float, extra: float) -> Tensor:
    """Return `weight` times the gradient of a divergence, plus `extra * probs`.

    The result (R, V) overwrites `probs`.
    """
    _scale(probs, extra + weight * pull.scale)
    if pull.ids is None:
        return probs.sub_(pull.rest, alpha=weight)
    return probs.scatter_add_(1, pull.ids, pull.rest * -weight)


def _scale(block: Tensor, factor: Tensor | float) -> None:
    if isinstance(factor, Tensor) or factor != 1.0:
        block.mul_(factor)
