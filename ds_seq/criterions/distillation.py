"""Cross entropy and knowledge distillation (Hinton et al., arXiv:1503.02531; Kim & Rush,
arXiv:1606.07947) for all tokens or hard tokens only, optionally with layer-wise terms.

Shapes: N real target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ds_seq.criterions.base import Criterion, Loss
from ds_seq.criterions.cross_entropy import smoothing_weights
from ds_seq.criterions.layerwise import AttentionTerm, HiddenTerm, attention_loss, hidden_loss
from ds_seq.criterions.selection import TokenSelector
from ds_seq.criterions.teacher import Teacher, TeacherOutput
from ds_seq.criterions.token_loss import Distil, Select, TokenTargets, token_loss
from ds_seq.data.batch import Batch, TopTokens
from ds_seq.models.output import ModelOutput
from ds_seq.names import Smoothing


class Distillation(Criterion):
    """Weighted sum of cross entropy, divergence from the teacher, and layer-wise terms.

    The parts are unweighted sums over tokens: `ce`, `nll`, `kd` (over the selected tokens, times
    the squared temperature), `kd_tokens` (number of selected tokens), and `hidden` and `attention`
    if these terms are given.

    Args:
        teacher: function called once per batch, without gradients.
        ce_weight: weight of the cross entropy; 0 only logs it.
        label_smoothing: probability mass taken from the correct token, in [0, 1).
        smoothing: how that mass is distributed, see `smoothing_weights`.
        distil: how token distributions are compared.
        selector: selector of the tokens to distill; None for all tokens.
        hidden: term for hidden states, or None.
        attention: term for attention maps, or None.
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        ce_weight: float,
        label_smoothing: float,
        smoothing: Smoothing,
        distil: Distil,
        selector: TokenSelector | None,
        hidden: HiddenTerm | None,
        attention: AttentionTerm | None,
    ) -> None:
        self._teacher, self._selector = teacher, selector
        self._ce_weight, self._distil = ce_weight, distil
        self._label_smoothing, self._smoothing = label_smoothing, smoothing
        self._hidden, self._attention = hidden, attention
        if attention is not None:
            self.capture = "attention"
        elif hidden is not None:
            self.capture = "hidden"

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Sum over the real target tokens of `batch`."""
        with torch.no_grad():
            answer = self._teacher(batch)
        tokens, parts = self._tokens(output.logits, answer, batch)
        total = tokens
        for name, weight, loss in self._layers(output, answer, batch):
            parts[name] = loss.detach()
            if weight:
                total = total + weight * loss
        return Loss(total, parts, tokens)

    def train(self, mode: bool = True) -> None:
        """See `Criterion.train`."""
        super().train(mode)
        if self._selector is not None:
            self._selector.training = mode

    def end_update(self, applied: bool) -> None:
        """See `Criterion.end_update`."""
        if self._selector is not None:
            self._selector.end_update(applied)

    def state(self) -> dict[str, Tensor]:
        """Return the queues of the selector."""
        return {} if self._selector is None else self._selector.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Criterion.load_state`."""
        if self._selector is not None:
            self._selector.load_state(state)

    def _tokens(
        self, logits: Tensor, answer: TeacherOutput, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss of the logits, and its parts.

        The divergence is 0 for a validation set without teacher outputs.
        """
        teacher = answer.top if answer.logits is None else answer.logits
        if teacher is None:
            assert batch.num_tokens == 0 or not self.training, "no teacher output for this batch"
            if self.training:  # a selector counts all batches of an update, including empty ones
                empty = logits.new_empty((0, 1))
                teacher = TopTokens(empty.long(), empty)
        loss = token_loss(
            logits,
            TokenTargets(batch.real_labels, teacher, self._select_from(batch)),
            smoothing_weights(self._label_smoothing, logits.shape[-1], self._smoothing),
            self._ce_weight,
            self._distil,
        )
        names = ("ce", "nll", "kd", "kd_tokens")
        return loss.total, {name: getattr(loss, name) for name in names}

    def _select_from(self, batch: Batch) -> Select | None:
        selector = self._selector
        return None if selector is None else lambda nll: selector.select(nll, batch)

    def _layers(
        self, output: ModelOutput, answer: TeacherOutput, batch: Batch
    ) -> Iterator[tuple[str, float, Tensor]]:
        """Iterate over name, weight and loss of each layer-wise term."""
        if self.capture == "none":
            return
        student, teacher = output.layers, answer.layers
        assert student is not None and teacher is not None, "both models must capture layers"
        if self._hidden is not None:
            yield "hidden", self._hidden.weight, hidden_loss(student, teacher, batch, self._hidden)
        if self._attention is not None:
            loss = attention_loss(student, teacher, batch, self._attention)
            yield "attention", self._attention.weight, loss
