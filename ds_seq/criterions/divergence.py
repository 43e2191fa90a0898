"""Divergences between a teacher's and a student's distribution, row by row, with their gradients.

The four as in Wen et al. (arXiv:2307.15190): Kullback-Leibler in both directions, Jensen-Shannon
and total variation. All arithmetic is float32 and meant for a few rows at a time, which stay in the
processor's cache from one pass to the next.

Shapes: R rows, V vocabulary, K tokens of which the teacher's probability is known: a
few, or all V.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ds_seq.criterions.cross_entropy import Softmax, softmax_rows
from ds_seq.names import Divergence

# Below what float16 can hold. A teacher's score of minus infinity becomes this, so that 0 times the
# logarithm of 0 is 0.
_LOWEST_SCORE = -1e5


class Pull(NamedTuple):
    """Divergence of each row from its teacher, and where it pulls the student's scores.

    The gradient with respect to the scores is `scale * probs - rest`, with the student's
    probabilities.
    """

    value: Tensor
    """(R, 1) in nats, never negative."""
    scale: Tensor | float
    """(R, 1), or one number for all rows."""
    rest: Tensor
    """(R, K)."""
    ids: Tensor | None
    """(R, K) columns of `rest`; None: all of them, in order."""


def diverge(divergence: Divergence, student: Softmax, teacher: Tensor, ids: Tensor | None) -> Pull:
    """Compare distributions; both sides are divided by the temperature already.

    Args:
        divergence: which. `reverse_kl` needs the whole distribution of the teacher.
        student: of the scores.
        teacher: (R, K) scores or logarithms of probabilities, float32; their softmax is the
            teacher's distribution.
        ids: (R, K) the columns of `teacher`, all others of which have probability 0; None where
            K = V.
    """
    scores, probs = student.scores, student.probs
    if ids is not None:
        scores, probs = scores.gather(1, ids), probs.gather(1, ids)
    target = softmax_rows(teacher)
    ratio = teacher.clamp(min=_LOWEST_SCORE).sub_(scores)
    # log(target / probs) is ratio + offset
    offset = student.log_sum - target.log_sum
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
    # With r = log(target / probs): log(probs / middle) = log 2 - softplus(r), and likewise
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
    """(R, 1) inner products of rows."""
    return torch.mul(left, right).sum(-1, True)
