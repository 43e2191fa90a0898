"""Cross entropy of models that compute the probabilities of correct tokens alone."""

from __future__ import annotations

from dataclasses import replace

from ds_seq.criterions.base import Criterion, Current, Loss
from ds_seq.data.batch import Batch
from ds_seq.models.output import ModelOutput


class LabelLoss(Criterion):
    """Cross entropy without smoothing of a model with adaptive softmax; parts as `CrossEntropy`."""

    prepares = True

    def prepare(self, batch: Batch, current: Current) -> Batch:
        """Show the model the labels, see `ds_seq.data.text_batch.TextInputs.labels`."""
        return replace(batch, inputs=batch.inputs._replace(labels=batch.real_labels))

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Sum over the real target tokens of `batch`."""
        assert output.label_log_probs is not None, "the model was given labels"
        loss = -output.label_log_probs.sum()
        return Loss(loss, {"ce": loss.detach(), "nll": loss.detach()})
