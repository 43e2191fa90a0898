"""Cross entropy and distillation of target tokens in one pass, with one gradient.

Both terms pull at the same (N, V) logits. As two autograd functions they would make two gradients
of that size, and a third for their sum; here, as in `ds_seq.criterions.cross_entropy`, rows are
taken a few at a time, everything about them is computed while they are in the cache, and their
gradient is written once, in the forward. Only logits, the teacher's logits and that gradient ever
exist whole.

With softmax p, and p_T at temperature T, the gradient of a row is

    ce_weight * (p - smoothed targets)  +  weight * T * (scale * p_T - rest)

where `ds_seq.criterions.divergence.Pull` has scale and rest.

Shapes: N real target tokens, R rows at a time, V vocabulary, K tokens that a
teacher names, M selected tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    put_cross_entropy,
    row_slices,
    rows_at_a_time,
    softmax_rows,
    subtract_targets,
)
from ds_seq.criterions.divergence import Pull, diverge
from ds_seq.data.batch import TopTokens
from ds_seq.names import Divergence

# How far beyond 1 a gradient of each divergence may go before float16 cuts it off. Reverse KL's has
# no bound: it grows with the logarithm of a probability that the teacher thinks to be almost 0.
_HEADROOM: dict[Divergence, float] = {"forward_kl": 1.0, "reverse_kl": 64.0, "js": 1.0, "tv": 1.0}

Select = Callable[[Tensor], Tensor]
"""From the (N,) negative log-likelihoods of a batch's tokens to the (M,) rows to distil."""


@dataclass(frozen=True)
class Distil:
    """How the student's distributions are compared with the teacher's.

    Attributes:
        weight: of the term in the total.
        divergence: which one.
        temperature: T, divides the scores of both sides; the term is multiplied by its square,
            which keeps the gradient's size (Hinton et al., arXiv:1503.02531).
        top_k: cut the teacher's distribution to its k most probable tokens; None keeps all.
    """

    weight: float
    divergence: Divergence
    temperature: float
    top_k: int | None


@dataclass(frozen=True)
class TokenTargets:
    """What the logits of a batch shall say.

    Attributes:
        tokens: (N,) int64, the right tokens.
        teacher: (N, V) scores of a teacher, or its best tokens; None distils nothing.
        select: picks the rows to distil; None takes all.
    """

    tokens: Tensor
    teacher: Tensor | TopTokens | None = None
    select: Select | None = None


class TokenLoss(NamedTuple):
    """Float32 scalars: sums over tokens. Only `total` can be differentiated."""

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
    """`ce_weight * cross entropy + distil.weight * T^2 * divergence from the teacher`, summed.

    Args:
        logits: (N, V), any floating dtype; the arithmetic is float32.
        targets: the right tokens, and a teacher's opinion of them.
        smoothing: what `smoothing_weights` gives.
        ce_weight: weight of the cross entropy; 0 leaves its gradient out.
        distil: how to compare with the teacher.

    Returns:
        The total, in nats, and its terms, unweighted.
    """
    terms = _TokenLoss.apply(  # type: ignore[no-untyped-call]
        logits, targets, smoothing, ce_weight, distil
    )
    return TokenLoss(*terms)


class _TokenLoss(torch.autograd.Function):
    """Keeps the gradient instead of distributions: one (N, V) tensor, no second softmax."""

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

    Rows pass by once where all of them are distilled. Where some are selected, by the likelihoods
    of the whole batch, these pass by a second time.
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
        # the temperature: once from the chain rule, squared from the term
        self._kd_weight = 0.0 if targets.teacher is None else distil.weight * distil.temperature
        bound = ce_weight + self._kd_weight * _HEADROOM[distil.divergence]
        self.gradient = LogitGradient(logits, bound) if needs_grad else None
        self._sums = LikelihoodSums(logits, smoothing)
        self._divergences = logits.new_zeros(len(logits), dtype=torch.float32)

    def run(self) -> TokenLoss:
        """Compute everything."""
        for block in row_slices(self._logits):
            self._first_pass(block)
        num_distilled = len(self._logits) if self._distils_all else 0
        if self._targets.teacher is not None and self._targets.select is not None:
            selected = self._targets.select(self._sums.nll)
            num_distilled = len(selected)
            for rows in torch.split(selected, rows_at_a_time(self._logits)):
                self._second_pass(rows)
        ce, nll = self._sums.cross_entropy(), self._sums.nll.sum()
        kd = self._distil.temperature**2 * self._divergences.sum()
        total = torch.zeros_like(nll)
        for weight, term in ((self._ce_weight, ce), (self._distil.weight, kd)):
            if weight:  # 0 times infinity would be no number
                total = total + weight * term
        return TokenLoss(total, ce, nll, kd, nll.new_full((), float(num_distilled)))

    def _first_pass(self, rows: slice) -> None:
        """Cross entropy of some rows, and their distillation unless rows are selected."""
        gradient, token = self.gradient, self._targets.tokens[rows].unsqueeze(1)
        # the divergences calculate with the scores themselves, so these must be float32 then
        scores = self._logits[rows].float() if self._distils_all else self._logits[rows]
        student = softmax_rows(scores, None if gradient is None else gradient.place(rows))
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
        """Distillation of the rows of these (R,) numbers."""
        student = softmax_rows(self._logits.index_select(0, rows).float())
        at_temperature, pull = self._diverge(student, rows)
        if self.gradient is not None and self._kd_weight:
            block = _divergence_gradient(at_temperature.probs, pull, self._kd_weight, extra=0.0)
            self.gradient.add(rows, block)

    def _diverge(self, student: Softmax, rows: slice | Tensor) -> tuple[Softmax, Pull]:
        """Compare some rows with the teacher.

        Returns:
            The student's distribution at the temperature, and how it pulls.
        """
        scores, ids = self._teacher_scores(rows)
        temperature = self._distil.temperature
        if temperature != 1.0:
            scores = scores / temperature
            student = softmax_rows(student.scores / temperature)
        pull = diverge(self._distil.divergence, student, scores, ids)
        self._divergences[rows] = pull.value.squeeze(1)
        return student, pull

    def _teacher_scores(self, rows: slice | Tensor) -> tuple[Tensor, Tensor | None]:
        """(R, K) float32 scores of the teacher and their columns; None: all, in order."""
        teacher, top_k = self._targets.teacher, self._distil.top_k
        if isinstance(teacher, TopTokens):
            return teacher.log_probs[rows].float(), teacher.ids[rows]
        assert teacher is not None
        scores = teacher[rows].float()
        if top_k is None or top_k >= scores.shape[1]:
            return scores, None
        best = scores.topk(top_k, dim=1)
        return best.values, best.indices


def _divergence_gradient(probs: Tensor, pull: Pull, weight: float, extra: float) -> Tensor:
    """`weight` times the gradient of a divergence, plus `extra * probs`.

    Overwrites the (R, V) probabilities, which is what it returns.
    """
    _scale(probs, extra + weight * pull.scale)
    if pull.ids is None:
        return probs.sub_(pull.rest, alpha=weight)
    return probs.scatter_add_(1, pull.ids, pull.rest * -weight)


def _scale(block: Tensor, factor: Tensor | float) -> None:
    if isinstance(factor, Tensor) or factor != 1.0:
        block.mul_(factor)
