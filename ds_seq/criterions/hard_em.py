"""Mixtures of experts that share all weights, trained by EM: hard or soft, with or without a prior.

Shen et al., 2019, "Mixture Models for Diverse Machine Translation: Tricks of the Trade",
arXiv:1902.07816. Expert z is a symbol that starts the decoder. With the smoothed cross entropy ce,
and the prior P(z | x), uniform or learned (`ds_seq.models.expert_prior`):

    hard   E step, without dropout:  z* = argmax over z of log P(z | x) + log P(y | x, z)
           M step, with dropout:     minimize ce(y | x, z*) - log P(z* | x)
    soft   E step, without dropout:  r_z in proportion to P(z | x) exp(-ce(y | x, z))
           M step, with dropout:     minimize -log sum over z of P(z | x) exp(-ce(y | x, z)),
                                     with the gradient of sum over z of r_z (ce - log P(z | x))

Without dropout the gradient of the soft M step is that of its value. The hard loss leaves out a
uniform prior, a constant. These are the paper's hMoEup, hMoElp, sMoEup and sMoElp. Experts and
shares are computed anew for each batch, as in the paper: they need no memory.

Shapes: B sentences, T target length, K experts, N real target tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ds_seq.criterions.base import Criterion, Current, Loss
from ds_seq.criterions.cross_entropy import CrossEntropy, smoothing_weights
from ds_seq.criterions.likelihoods import target_sums, token_likelihoods
from ds_seq.data.batch import Batch, Mixture, Seq2SeqInputs
from ds_seq.data.splitting import repeated
from ds_seq.errors import UserError
from ds_seq.models.output import ModelOutput
from ds_seq.names import ExpertAssignment


class _Sums(NamedTuple):
    """Sums over the tokens of targets (B,)."""

    ce: Tensor
    nll: Tensor


class HardEm(Criterion):
    """Loss of a mixture; parts `ce`, `nll` and `expert<k>`, and `prior` of a hard one with a prior.

    `expert<k>` is the number of target tokens of the sentences that expert k wins, from 1; of a
    soft mixture, its share of all target tokens. There, `ce` is the loss, and `nll` the same
    without smoothing. `prior` is the sum of -log P(z* | x). A validation does the same.

    Args:
        starts: start symbol of each expert.
        cross_entropy: the loss of an expert.
        assignment: which experts learn from a sentence.
    """

    prepares = True

    def __init__(
        self, starts: Sequence[int], cross_entropy: CrossEntropy, assignment: ExpertAssignment
    ) -> None:
        self.starts, self.cross_entropy = tuple(starts), cross_entropy
        self.assignment = assignment

    @torch.no_grad()
    def prepare(self, batch: Batch, current: Current) -> Batch:
        """Return the batch whose targets start with experts: the best ones, or all in turn.

        The model reads the batch once for each expert, in evaluation mode.

        Raises:
            UserError: the batch has inputs of another kind than those of an encoder-decoder.
        """
        if not isinstance(batch.inputs, Seq2SeqInputs):
            raise UserError(
                "criterion.name: hard_em starts the decoder of an encoder-decoder, and this task "
                "has other inputs; use another criterion"
            )
        is_soft = self.assignment == "soft"
        model, joint = current.model, []
        was_training = model.training
        model.eval()
        try:
            for expert, start in enumerate(self.starts):
                read = _started(batch, batch.labels.new_full((len(batch.labels),), start))
                output = model(read.inputs)
                sums = self._sums(output, batch)
                prior = self._log_prior(output)
                joint.append(prior[:, expert] - (sums.ce if is_soft else sums.nll))
        finally:
            model.train(was_training)
        scores = torch.stack(joint)  # (K, B)
        starts = batch.labels.new_tensor(self.starts)
        if not is_soft:
            return _started(batch, starts[scores.argmax(0)])
        every = repeated(batch, len(starts))
        mixture = Mixture(scores.softmax(0), batch.num_tokens)
        return replace(
            _started(every, starts.repeat_interleave(len(batch.labels))), mixture=mixture
        )

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Sum over the real target tokens of the data, of `batch` that `prepare` has returned."""
        if batch.mixture is not None:
            return self._soft(output, batch, batch.mixture)
        loss = self.cross_entropy(output, batch)
        lengths = batch.mask.sum(1)
        has_won = [batch.inputs.target[:, 0] == start for start in self.starts]  # (B,) each
        won = {
            f"expert{number}": (lengths * own).sum().float()
            for number, own in enumerate(has_won, 1)
        }
        if output.expert_log_probs is None:
            return loss._replace(parts={**loss.parts, **won})
        is_real = lengths > 0  # not the row of an empty batch
        chosen = torch.stack(has_won, 1) & is_real[:, None]
        prior = output.expert_log_probs.masked_fill(~chosen, 0.0).sum().neg()
        parts = {**loss.parts, "prior": prior.detach(), **won}
        return Loss(loss.total + prior, parts, loss.total)

    def _soft(self, output: ModelOutput, batch: Batch, mixture: Mixture) -> Loss:
        shares = mixture.shares
        ce, nll = (each.view_as(shares) for each in self._sums(output, batch))
        prior = self._log_prior(output)  # (K B, K) if it is learned, else (1, K)
        if len(prior) > 1:  # of each copy of a sentence, the expert that starts it
            prior = prior.view(*shares.shape, -1).diagonal(dim1=0, dim2=2)  # (B, K)
        prior = prior.T  # (K, B) or (K, 1)
        joint = prior - ce
        is_real = batch.mask[: shares.shape[1]].any(1)
        value = joint.detach().logsumexp(0).neg().masked_fill(~is_real, 0.0).sum()
        bound = (shares * joint).sum(0).masked_fill(~is_real, 0.0).sum().neg()
        total = bound + (value - bound.detach())
        plain = (prior.detach() - nll.detach()).logsumexp(0).neg().masked_fill(~is_real, 0.0)
        lengths = batch.mask[: shares.shape[1]].sum(1)
        parts = {"ce": value, "nll": plain.sum()}
        for number, own in enumerate(shares, 1):
            parts[f"expert{number}"] = (own * lengths).sum()
        return Loss(total, parts)

    def _sums(self, output: ModelOutput, batch: Batch) -> _Sums:
        """Return the cross entropies of the targets of a batch."""
        plain = self.cross_entropy
        nll, spread = token_likelihoods(output.logits, batch.real_labels)
        a, b = smoothing_weights(plain.label_smoothing, output.logits.shape[1], plain.smoothing)
        return _Sums(target_sums(a * nll + b * spread, batch.mask), target_sums(nll, batch.mask))

    def _log_prior(self, output: ModelOutput) -> Tensor:
        """Return log P(z | x): (rows, K) if it is learned, else (1, K)."""
        if output.expert_log_probs is not None:
            return output.expert_log_probs
        count = len(self.starts)
        return output.logits.new_full((1, count), -math.log(count), dtype=torch.float32)


def _started(batch: Batch[Seq2SeqInputs], starts: Tensor) -> Batch[Seq2SeqInputs]:
    """Return the batch whose targets begin with these symbols (B,)."""
    target = torch.cat([starts[:, None], batch.inputs.target[:, 1:]], 1)
    return replace(batch, inputs=batch.inputs._replace(target=target))
