"""Cross entropy and distillation of target tokens in one pass, with one gradient.

Both terms pull at the same (N, V) logits. As two autograd functions they would make two gradients
of that size, and a third for their sum; here rows are taken a few at a time, everything about them
is computed while they are in the cache, and their gradient is written once, in the forward. Only
logits, the teacher's logits and that gradient ever exist whole.
Legend: ``N`` real target tokens, ``R`` rows at a time, ``V`` vocabulary, ``K`` tokens that a
teacher names, ``M`` selected tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds_seq.criterions.divergence import Pull, Softmax, diverge, softmax_rows
from ds_seq.criterions.logit_gradient import LogitGradient, multiply_in_place
from ds_seq.data.batch import TopTokens
from ds_seq.names import Divergence, Smoothing

# Logits at a time: on a CPU 1 MB for the cache of each thread, which is also enough that the calls
# themselves cost little.
_CPU_ELEMENTS = 1 << 18
# A GPU wants much at a time, but not (N, V) float32: 256 MB a tensor. Cross entropy of 16,384 bf16
# rows of 32,768 took 15.5 ms on an NVIDIA H200 with a quarter of that, 11.1 ms with this.
_GPU_ELEMENTS = 1 << 26

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
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        # In place: the tensor is large and was made for this. A second backward through the same
        # graph would find it changed, which autograd notices and refuses.
        multiply_in_place(gradient, grads[0] / ctx.scale, _slices(gradient))
        return gradient, None, None, None, None


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
        self.gradient = LogitGradient(logits, bound) if needs_grad else None
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
        distil_all = targets.teacher is not None and targets.select is None
        # the divergences calculate with the scores themselves, so these must be float32 then
        scores = self._logits[rows].float() if distil_all else self._logits[rows]
        student = softmax_rows(scores, None if gradient is None else gradient.place(rows))
        token = targets.tokens[rows].unsqueeze(1)
        self._note_likelihoods(rows, student, token)
        compared = self._diverge(student, rows) if distil_all else None
        if gradient is None:
            return
        if compared is None or not self._pull:
            self._put_cross_entropy(gradient, rows, student.probs, token)
            return
        at_temperature, pull = compared
        block = student.probs
        if self._distil.temperature == 1.0:  # both terms have the same softmax
            _apply(block, pull, self._ce_weight, self._pull)
        else:
            _weigh(block, self._ce_weight)
            block.add_(_apply(at_temperature.probs, pull, 0.0, self._pull))
        self._subtract_targets(block, token)
        gradient.put(rows, block)

    def _note_likelihoods(self, rows: slice, student: Softmax, token: Tensor) -> None:
        """Keep what the values of the cross entropy are made of; ``token`` is (R, 1)."""
        scores, log_sum = student.scores, student.log_sum
        self._nll[rows] = (log_sum - scores.gather(1, token)).squeeze(1)
        if self._smoothing[1]:
            total = scores.sum(-1, dtype=torch.float32)
            self._spread[rows] = log_sum.squeeze(1) * scores.shape[1] - total

    def _put_cross_entropy(
        self, gradient: LogitGradient, rows: slice, probs: Tensor, token: Tensor
    ) -> None:
        """Gradient of the cross entropy alone, from the (R, V) probabilities, which it overwrites.

        Each pass over (R, V) numbers costs a GPU their memory traffic. There one pass does all: it
        weighs, subtracts the smoothing, and converts to the dtype of the logits. On a CPU, where
        the block is in the cache, three simple passes are faster.
        """
        if _in_one_pass(probs):
            a, b = self._smoothing
            probs.scatter_add_(1, token, probs.new_full((), -a).expand_as(token))
            gradient.put_affine(rows, probs, self._ce_weight, -b * self._ce_weight)
            return
        _weigh(probs, self._ce_weight)
        self._subtract_targets(probs, token)
        gradient.put(rows, probs)

    def _subtract_targets(self, block: Tensor, token: Tensor) -> None:
        """Turn weighted probabilities (R, V) into the cross entropy's gradient."""
        if not self._ce_weight:
            return
        a, b = (self._ce_weight * factor for factor in self._smoothing)
        if b:
            block.sub_(b)
        block.scatter_add_(1, token, block.new_full((), -a).expand_as(token))

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


def _in_one_pass(block: Tensor) -> bool:
    return block.is_cuda


def _rows_at_a_time(logits: Tensor) -> int:
    on_cpu = logits.device.type == "cpu"
    elements = _CPU_ELEMENTS * torch.get_num_threads() if on_cpu else _GPU_ELEMENTS
    return max(elements // max(logits.shape[1], 1), 1)


def _slices(logits: Tensor) -> Iterator[slice]:
    step = _rows_at_a_time(logits)
    for start in range(0, len(logits), step):
        yield slice(start, start + step)
