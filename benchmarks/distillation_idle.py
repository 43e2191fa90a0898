"""A criterion that discards a teacher's output, to measure the cost of its forward pass."""

from __future__ import annotations

import torch

from ds_seq.criterions.base import Criterion, Loss
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.data.batch import Batch
from ds_seq.models.output import ModelOutput
from ds_seq.runs.open import load_run


class IdleTeacher(Criterion):
    """Cross entropy, and the forward pass of a teacher.

    Args:
        teacher: run folder of the teacher.
        label_smoothing: label smoothing of the cross entropy.
    """

    def __init__(self, teacher: str, label_smoothing: float) -> None:
        self._model = load_run(teacher, "best").model
        self._base = CrossEntropy(label_smoothing, "fairseq")

    @torch.no_grad()
    def _teach(self, batch: Batch) -> None:
        self._model(batch.inputs)

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """See `Criterion`."""
        self._teach(batch)
        return self._base(output, batch)
