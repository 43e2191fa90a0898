"""Cross entropy and distillation of target tokens in one pass, with one gradient.

Both terms pull at the same (N, V) logits. As two autograd functions they would make two gradients
of that size, and a third for their sum; here rows are taken a few at a time, everything about them
is computed while they are in the cache, and their gradient is written once, in the forward. Only
logits, the teacher's logits and that gradient ever exist whole.
Legend: ``N`` real target tokens, ``R`` rows at a time, ``V`` vocabulary, ``K`` tokens that a
teacher names, ``M`` selected tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ds_seq.criterions.divergence import Pull, Softmax, diverge, softmax_rows
from ds_seq.data.dataset import TopTokens
from ds_seq.names import Divergence, Smoothing

# Logits at a time: on a CPU 1 MB for the cache of each thread, which is also enough that the calls
# themselves cost little.
_CPU_ELEMENTS = 1 << 18
_GPU_ELEMENTS = 1 << 24  # a GPU wants much at a time, but not (N, V) float32

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
        temperature: divides the scores of both sides; the term is multiplied by its square, which
            keeps the gradient's size (Hinton et al., arXiv:1503.02531).
        top_k: cut the teacher's distribution to its k most probable tokens.
    """

    weight: float = 1.0
    divergence: Divergence = "forward_kl"
    temperature: float = 1.0
    top_k: int | None = None


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
    """Float32 scalars: sums over tokens. Only ``total`` can be differentiated."""

    total: Tensor
    ce: Tensor
    nll: Tensor
    kd: Tensor
    kd_tokens: Tensor


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


def token_loss(
    logits: Tensor,
    targets: TokenTargets,
    smoothing: tuple[float, float],
    ce_weight: float = 1.0,
    distil: Distil | None = None,
) -> TokenLoss:
    """``ce_weight * cross entropy + distil.weight * T^2 * divergence from the teacher``, summed.

    Args:
        logits: (N, V), any floating dtype; the arithmetic is float32.
        targets: the right tokens, and a teacher's opinion of them.
        smoothing: what `smoothing_weights` gives.
        ce_weight: weight of the cross entropy; 0 leaves its gradient out.
        distil: how to compare with the teacher.

    Returns:
        The total, in nats, and its terms, unweighted.
    """
    found = _TokenLoss.apply(  # type: ignore[no-untyped-call]
        logits, targets, smoothing, ce_weight, Distil() if distil is None else distil
    )
    return TokenLoss(*found)


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
        found = work.run()
        ctx.scale = work.gradient.scale if work.gradient else 1.0
        ctx.save_for_backward(work.gradient.buffer if work.gradient else logits.new_empty(0))
        ctx.mark_non_differentiable(*found[1:])
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        # In place: the tensor is large and was made for this. A second backward through the same
        # graph would find it changed, which autograd notices and refuses.
        factor = grads[0] / ctx.scale
        if gradient.dtype in (torch.float32, torch.float64):
            gradient.mul_(factor)
        else:  # the factor alone, which a GPU would round to float16, may be beyond its range
            for rows in _slices(gradient):
                gradient[rows] = gradient[rows].float().mul_(factor)
        return gradient, None, None, None, None


class _Gradient:
    """The gradient of the logits on its way to the backward.

    Float16 ends at 6e-8, and a loss scale comes only in the backward, too late for what has become
    0. So there everything is kept multiplied by a power of two.

    Args:
        logits: whose shape and dtype the gradient has.
        bound: the largest element there can be.
    """

    def __init__(self, logits: Tensor, bound: float) -> None:
        self.buffer = torch.empty_like(logits, memory_format=torch.contiguous_format)
        self.scale, self._largest = 1.0, math.inf
        if logits.dtype == torch.float16:
            self._largest = torch.finfo(torch.float16).max
            self.scale = 2.0 ** math.floor(math.log2(self._largest / max(bound, 1e-3)))

    def place(self, rows: slice) -> Tensor | None:
        """(R, V) float32 memory of these rows, or None where they are kept in another dtype."""
        return self.buffer[rows] if self.buffer.dtype == torch.float32 else None

    def put(self, rows: slice, block: Tensor) -> None:
        """Take in the (R, V) float32 gradient of some rows."""
        if self.buffer.dtype != torch.float32:  # else it was computed in its place
            self.buffer[rows] = self._packed(block)

    def add(self, rows: Tensor, block: Tensor) -> None:
        """Add to the rows of these (R,) numbers."""
        if self.buffer.dtype == torch.float32:
            self.buffer.index_add_(0, rows, block)
            return
        kept = self.buffer.index_select(0, rows).float().div_(self.scale)
        self.buffer[rows] = self._packed(block.add_(kept)).to(self.buffer.dtype)

    def _packed(self, block: Tensor) -> Tensor:
        if self.buffer.dtype != torch.float16:
            return block
        return block.mul_(self.scale).clamp_(-self._largest, self._largest)


class _Forward:
    """One forward pass of `_TokenLoss`, a few rows after the other."""

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
        # the temperature: once from the chain rule, squared from the term
        self._pull = distil.weight * distil.temperature if targets.teacher is not None else 0.0
        bound = ce_weight + self._pull * _HEADROOM[distil.divergence]
        self.gradient = _Gradient(logits, bound) if needs_grad else None
        # (N,) each: -log p of the right word, the sum of -log p over all words, the divergence
        self._nll, self._spread, self._kd = logits.new_zeros(
            (3, len(logits)), dtype=torch.float32
        ).unbind()

    def run(self) -> TokenLoss:
        """Compute everything."""
        for block in _slices(self._logits):
            self._first_pass(block)
        num_distilled = 0 if self._targets.teacher is None else len(self._logits)
        if self._targets.teacher is not None and self._targets.select is not None:
            selected = self._targets.select(self._nll)
            num_distilled = len(selected)
            for rows in torch.split(selected, _rows_at_a_time(self._logits)):
                self._second_pass(rows)
        a, b = self._smoothing
        nll = self._nll.sum()
        ce = a * nll + b * self._spread.sum()
        kd = self._distil.temperature**2 * self._kd.sum()
        total = torch.zeros_like(nll)
        for weight, term in ((self._ce_weight, ce), (self._distil.weight, kd)):
            if weight:  # 0 times infinity would be no number
                total = total + weight * term
        return TokenLoss(total, ce, nll, kd, nll.new_full((), float(num_distilled)))

    def _first_pass(self, rows: slice) -> None:
        """Cross entropy of some rows, and their distillation unless rows are selected."""
        gradient, targets = self.gradient, self._targets
        student = softmax_rows(
            self._logits[rows].float(), None if gradient is None else gradient.place(rows)
        )
        scores, block = student.scores, student.probs
        token = targets.tokens[rows].unsqueeze(1)
        self._nll[rows] = (student.log_sum - scores.gather(1, token)).squeeze(1)
        if self._smoothing[1]:
            log_sums = student.log_sum.squeeze(1) * scores.shape[1]
            self._spread[rows] = log_sums - scores.sum(-1)
        pulled = None
        if targets.teacher is not None and targets.select is None:
            pulled = self._diverge(student, rows)
        if gradient is None:
            return
        if pulled is None or not self._pull:
            _weigh(block, self._ce_weight)
        elif pulled[0].probs is block:  # at temperature 1 both terms have the same softmax
            _apply(block, pulled[1], self._ce_weight, self._pull)
        else:
            _weigh(block, self._ce_weight)
            block.add_(_apply(pulled[0].probs, pulled[1], 0.0, self._pull))
        if self._ce_weight:
            a, b = (self._ce_weight * factor for factor in self._smoothing)
            if b:
                block.sub_(b)
            block.scatter_add_(1, token, block.new_full((), -a).expand_as(token))
        gradient.put(rows, block)

    def _second_pass(self, rows: Tensor) -> None:
        """Distillation of the rows of these (R,) numbers."""
        student = softmax_rows(self._logits.index_select(0, rows).float())
        student, pull = self._diverge(student, rows)
        if self.gradient is not None and self._pull:
            self.gradient.add(rows, _apply(student.probs, pull, 0.0, self._pull))

    def _diverge(self, student: Softmax, rows: slice | Tensor) -> tuple[Softmax, Pull]:
        """Compare some rows with the teacher.

        Returns:
            The student's distribution at the temperature, and how it pulls.
        """
        teacher, temperature = self._targets.teacher, self._distil.temperature
        if isinstance(teacher, TopTokens):
            scores, ids = teacher.log_probs[rows].float(), teacher.ids[rows]
        else:
            assert teacher is not None
            scores, ids = teacher[rows].float(), None
            if self._distil.top_k is not None and self._distil.top_k < scores.shape[1]:
                scores, ids = scores.topk(self._distil.top_k, dim=1)
        if temperature != 1.0:
            scores = scores / temperature
            student = softmax_rows(student.scores / temperature)
        pull = diverge(self._distil.divergence, student, scores, ids)
        self._kd[rows] = pull.value.squeeze(1)
        return student, pull


def _weigh(block: Tensor, weight: float) -> None:
    if weight != 1.0:
        block.mul_(weight)


def _apply(probs: Tensor, pull: Pull, extra: float, weight: float) -> Tensor:
    """``extra * probs + weight * gradient of the divergence``, in place of the probabilities."""
    factor = extra + weight * pull.scale
    if isinstance(factor, Tensor):
        probs.mul_(factor)
    else:
        _weigh(probs, factor)
    if pull.ids is None:
        return probs.sub_(pull.rest, alpha=weight)
    return probs.scatter_add_(1, pull.ids, pull.rest * -weight)


def _rows_at_a_time(logits: Tensor) -> int:
    on_cpu = logits.device.type == "cpu"
    elements = _CPU_ELEMENTS * torch.get_num_threads() if on_cpu else _GPU_ELEMENTS
    return max(elements // max(logits.shape[1], 1), 1)


def _slices(logits: Tensor) -> Iterator[slice]:
    step = _rows_at_a_time(logits)
    for start in range(0, len(logits), step):
        yield slice(start, start + step)
