"""Cross entropy and knowledge distillation (Hinton et al., arXiv:1503.02531; Kim & Rush,
arXiv:1606.07947), of all tokens or of the hard ones, and of a teacher's layers.

Legend: ``N`` real target tokens, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ds_seq.config.criterion import DistillationConfig
from ds_seq.criterions.base import Criterion, Loss
from ds_seq.criterions.layerwise import attention_loss, hidden_loss
from ds_seq.criterions.selection import BatchGate, Gate, QueueGate
from ds_seq.criterions.teacher import Teacher, TeacherOutput
from ds_seq.criterions.token_loss import Distil, TokenTargets, smoothing_weights, token_loss
from ds_seq.data.batch import Batch, TopTokens
from ds_seq.models.output import ModelOutput


class Distillation(Criterion):
    """``sum of weight * part`` over cross entropy, divergence from the teacher, and layers.

    Parts, unweighted sums over tokens: ``ce``, ``nll``, ``kd`` (of the selected tokens, times the
    square of the temperature), ``kd_tokens`` (how many were selected), and ``hidden`` and
    ``attention`` where the config has them.

    Args:
        config: weights, strategy, divergence and layers.
        teacher: called once a batch, without gradients.
        tags: ids of the tokens that name a source's language.
    """

    def __init__(
        self, config: DistillationConfig, teacher: Teacher, tags: Collection[int] = ()
    ) -> None:
        self._config, self._teacher = config, teacher
        self._weights = config.weights
        self._gate = _gate(config, tags)
        if config.attention is not None:
            self.capture = "attention"
        elif config.hidden is not None:
            self.capture = "hidden"

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Sum over the real target tokens of ``batch``."""
        with torch.no_grad():
            said = self._teacher(batch)
        total, parts = self._tokens(output.logits, said, batch)
        for name, loss in self._layers(output, said, batch).items():
            parts[name] = loss.detach()
            if self._weights[name]:
                total = total + self._weights[name] * loss
        return Loss(total, parts)

    def train(self, mode: bool = True) -> None:
        """See `Criterion.train`."""
        super().train(mode)
        if self._gate is not None:
            self._gate.training = mode

    def end_update(self, applied: bool) -> None:
        """See `Criterion.end_update`."""
        if self._gate is not None:
            self._gate.end_update(applied)

    def state(self) -> dict[str, Tensor]:
        """The queues of losses."""
        return {} if self._gate is None else self._gate.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Criterion.load_state`."""
        if self._gate is not None:
            self._gate.load_state(state)

    def _tokens(
        self, logits: Tensor, said: TeacherOutput, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss of the logits, and its parts.

        A validation set that no teacher has read has no divergence.
        """
        config, gate = self._config, self._gate
        teacher = said.top if said.logits is None else said.logits
        if teacher is None:
            assert batch.num_tokens == 0 or not self.training, "nobody teaches this batch"
            if self.training:  # a gate counts the batches of an update, empty ones too
                nothing = logits.new_empty((0, 1))
                teacher = TopTokens(nothing.long(), nothing)

        def select(nll: Tensor) -> Tensor:
            assert gate is not None
            return gate.select(nll, batch)

        found = token_loss(
            logits,
            TokenTargets(
                batch.real_labels,
                teacher,
                None if gate is None else select,
            ),
            smoothing_weights(config.label_smoothing, logits.shape[-1], config.smoothing),
            self._weights["ce"],
            Distil(self._weights["kd"], config.divergence, config.temperature, config.top_k),
        )
        names = ("ce", "nll", "kd", "kd_tokens")
        return found.total, {name: getattr(found, name) for name in names}

    def _layers(self, output: ModelOutput, said: TeacherOutput, batch: Batch) -> dict[str, Tensor]:
        """Losses of the layers by name."""
        hidden, attention = self._config.hidden, self._config.attention
        if hidden is None and attention is None:
            return {}
        own, other = output.layers, said.layers
        assert own is not None and other is not None, "both were asked to capture them"
        losses = {}
        if hidden is not None:
            losses["hidden"] = hidden_loss(own, other, batch, hidden)
        if attention is not None:
            losses["attention"] = attention_loss(own, other, batch, attention)
        return losses


def _gate(config: DistillationConfig, tags: Collection[int]) -> Gate | None:
    if config.strategy == "batch_level":
        return BatchGate(config.rate)
    if config.strategy == "global_level":
        return QueueGate(config.rate, config.queue_size, config.shared_queue)
    if config.strategy == "global_language_wise":
        return QueueGate(config.rate, config.queue_size, config.shared_queue, tags)
    return None
