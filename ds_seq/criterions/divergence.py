"""Row-wise divergences between a teacher's and a student's distribution, with their gradients.

These are the four divergences of Wen et al. (arXiv:2307.15190): Kullback-Leibler in both
directions, Jensen-Shannon and total variation. All arithmetic is float32. The functions are meant
for a few rows at a time, which stay in the processor's cache between passes.

Shapes: R rows, V vocabulary, K tokens whose teacher probability is known:
a few, or all V.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ds_seq.criterions.cross_entropy import Softmax, are_large, softmax_rows
from ds_seq.names import Divergence

# Below the range of float16. Replaces a teacher's score of minus infinity, so that 0 * log(0) is 0.
_LOWEST_SCORE = -1e5


class Pull(NamedTuple):
    """Divergence of each row from the teacher, and its gradient.

    The gradient with respect to the student's scores is `scale * probs - rest`, where `probs` are
    the student's probabilities.
    """

    value: Tensor
    """(R, 1) in nats, never negative."""
    scale: Tensor | float
    """(R, 1), or one number for all rows."""
    rest: Tensor
    """(R, K)."""
    ids: Tensor | None
    """(R, K) columns of `rest`; None for all V columns, in order."""


def shifted(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Convert scores (R, V) of a model to float32, for arithmetic with those of another model.

    A large offset that all scores of a row have in common would leave only their last digits to a
    difference between models, and has no meaning for a softmax: it is taken off. On a CPU, scores
    of usual size stay as they are, because this costs a pass over them; on a GPU, it is part of the
    conversion.

    Returns:
        The scores, and the largest one of each row (R, 1).
    """
    top = scores.amax(-1, True).float()
    if scores.is_cuda or are_large(top):
        return scores - top, torch.zeros_like(top)
    return scores.float(), top


def diverge(divergence: Divergence, student: Softmax, teacher: Tensor, ids: Tensor | None) -> Pull:
    """Compare distributions whose scores are already divided by the temperature.

    Args:
        divergence: kind of divergence. `reverse_kl` needs the teacher's whole distribution.
        student: the student's softmax of `shifted` scores.
        teacher: (R, K) scores or log-probabilities, any floating dtype; their softmax is the
            teacher's distribution.
        ids: (R, K) columns of `teacher`, where all other columns have probability 0; None if
            K = V.
    """
    scores, probs = student.scores, student.probs
    if ids is not None:
        scores, probs = scores.gather(1, ids), probs.gather(1, ids)
    teacher, top = shifted(teacher)
    target = softmax_rows(teacher, top=top)
    ratio = teacher.clamp(min=_LOWEST_SCORE).sub_(scores)
    # log(target / probs) is ratio + offset
    offset = (student.top + student.log_sum) - (target.top + target.log_sum)
    value, scale, rest = _COMPARE[divergence](target.probs, probs, ratio, offset)
    return Pull(value.clamp_(min=0.0), scale, rest, ids)


_Compared = tuple[Tensor, "Tensor | float", Tensor]


def _forward_kl(target: Tensor, probs: Tensor, ratio: Tensor, offset: Tensor) -> _Compared:
    return _dot(target, ratio) + offset, 1.0, target


def _reverse_kl(target: Tensor, probs: Tensor, ratio: Tensor, offset: Tensor) -> _Compared:
    rest = ratio.mul_(probs)
    mean = rest.sum(-1, True)
    return -(mean + offset), mean, rest


def _jensen_shannon(target: Tensor, probs: Tensor, ratio: Tensor, offset: Tensor) -> _Compared:
    # With r = log(target / probs), log(probs / middle) = log 2 - softplus(r), and
    # log(target / middle) = log 2 - softplus(r) + r. Neither can overflow.
    soft = F.softplus(ratio.add_(offset))
    towards = _dot(target, soft) - _dot(target, ratio)
    rest = soft.mul_(probs).mul_(0.5)
    mean = rest.sum(-1, True)
    return math.log(2.0) - mean - 0.5 * towards, mean, rest


def _total_variation(target: Tensor, probs: Tensor, ratio: Tensor, offset: Tensor) -> _Compared:
    # half the sum of absolute differences is the sum of the positive ones
    gap = torch.sub(target, probs, out=ratio)
    value = gap.relu().sum(-1, True)
    rest = gap.gt_(0.0).mul_(probs)
    return value, rest.sum(-1, True), rest


_COMPARE = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "js": _jensen_shannon,
    "tv": _total_variation,
}


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner products of rows, (R, 1)."""
    return torch.mul(left, right).sum(-1, True)
