"""A mixture of experts that is trained by hard EM: only the best expert of a sentence learns.

Shen et al., 2019, "Mixture Models for Diverse Machine Translation: Tricks of the Trade",
arXiv:1902.07816, with a uniform prior (hMoEup). All experts share the weights of the model; expert
z is a symbol that starts the decoder. With the smoothed cross entropy ce:

    E step, without dropout:  z* = argmax over z of log P(y | x, z)
    M step, with dropout:     minimize ce(y | x, z*)

The expert is chosen anew for each batch, as in the paper: the responsibilities need no memory.

Shapes: B sentences, T target length, K experts, N real target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ds_seq.criterions.base import Criterion, Current, Loss
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.criterions.likelihoods import target_sums, token_likelihoods
from ds_seq.data.batch import Batch, Seq2SeqInputs
from ds_seq.errors import UserError
from ds_seq.models.output import ModelOutput


class HardEm(Criterion):
    """Cross entropy of the best expert of each sentence; parts `ce`, `nll` and `expert<k>`.

    `expert<k>` is the number of target tokens of the sentences that expert k wins, from 1. A
    validation chooses experts in the same way.

    Args:
        starts: start symbol of each expert.
        cross_entropy: the loss.
    """

    prepares = True

    def __init__(self, starts: Sequence[int], cross_entropy: CrossEntropy) -> None:
        self.starts, self.cross_entropy = tuple(starts), cross_entropy

    @torch.no_grad()
    def prepare(self, batch: Batch, current: Current) -> Batch:
        """Return the batch with the symbol of the best expert at the start of each target.

        The model reads the batch once for each expert, in evaluation mode.

        Raises:
            UserError: the batch has inputs of another kind than those of an encoder-decoder.
        """
        if not isinstance(batch.inputs, Seq2SeqInputs):
            raise UserError(
                "criterion.name: hard_em starts the decoder of an encoder-decoder, and this task "
                "has other inputs; use another criterion"
            )
        model, likelihoods = current.model, []
        was_training = model.training
        model.eval()
        try:
            for start in self.starts:
                read = _started(batch, batch.labels.new_full((len(batch.labels),), start))
                nll, _ = token_likelihoods(model(read.inputs).logits, batch.real_labels)
                likelihoods.append(target_sums(nll, batch.mask))
        finally:
            model.train(was_training)
        best = torch.stack(likelihoods).argmin(0)  # (B,)
        return _started(batch, best.new_tensor(self.starts)[best])

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Sum over the real target tokens of `batch`, which `prepare` has returned."""
        loss = self.cross_entropy(output, batch)
        lengths = batch.mask.sum(1)
        won = {
            f"expert{number}": (lengths * (batch.inputs.target[:, 0] == start)).sum().float()
            for number, start in enumerate(self.starts, 1)
        }
        return loss._replace(parts={**loss.parts, **won})


def _started(batch: Batch[Seq2SeqInputs], starts: Tensor) -> Batch[Seq2SeqInputs]:
    """Return the batch whose targets begin with these symbols (B,)."""
    target = torch.cat([starts[:, None], batch.inputs.target[:, 1:]], 1)
    return replace(batch, inputs=batch.inputs._replace(target=target))
