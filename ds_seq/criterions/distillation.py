"""Word-level knowledge distillation (Hinton et al., arXiv:1503.02531; Kim & Rush,
arXiv:1606.07947).

Legend: ``N`` real target tokens, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ds_seq.criterions.base import Loss
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.data.dataset import Batch
from ds_seq.models.output import ModelOutput

Teacher = Callable[[Batch], Tensor]
"""Gives the (N, V) logits of a frozen teacher for a batch; takes no gradient."""


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum over rows of ``T^2 * KL(teacher || student)`` of the distributions at temperature T.

    Args:
        student: (N, V) logits.
        teacher: (N, V) logits, detached by the caller.
        temperature: T; the factor T^2 keeps the gradient's size independent of it.

    Returns:
        float32 scalar, in nats.
    """
    log_q = torch.log_softmax(student / temperature, dim=-1, dtype=torch.float32)
    log_p = torch.log_softmax(teacher / temperature, dim=-1, dtype=torch.float32)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum()


class Distillation:
    """``ce_weight * cross entropy + kd_weight * KL to the teacher``, both sums over tokens.

    Parts: ``ce``, ``nll``, ``kd``, unweighted.
    """

    def __init__(
        self,
        base: CrossEntropy,
        teacher: Teacher,
        ce_weight: float,
        kd_weight: float,
        temperature: float,
    ) -> None:
        self.base, self.teacher = base, teacher
        self.ce_weight, self.kd_weight, self.temperature = ce_weight, kd_weight, temperature

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Sum over the real target tokens of ``batch``; the teacher runs under ``no_grad``."""
        ce = self.base(output, batch)
        with torch.no_grad():
            teacher = self.teacher(batch)
        kd = kl_divergence(output.logits, teacher, self.temperature)
        total = self.ce_weight * ce.total + self.kd_weight * kd
        return Loss(total, {**ce.parts, "kd": kd.detach()})
