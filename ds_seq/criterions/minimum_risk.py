"""Minimum risk training: the expected error of translations that the model itself generates.

Shen et al., 2016, "Minimum Risk Training for Neural Machine Translation", arXiv:1512.02433; Edunov
et al., 2018, "Classical Structured Prediction Losses for Sequence to Sequence Learning",
arXiv:1711.04956. With candidates S(x) of a source x, and the sharpness a:

    Q(y) = P(y | x)^a / sum over y' in S(x) of P(y' | x)^a
    risk = sum over y in S(x) of Q(y) (1 - metric(y, reference))

The risk of a sentence counts as often as its reference has tokens, so it is divided as a cross
entropy is, and an update is the same for any number of ranks and batches.

Shapes: B sentences, R candidates of all of them, C most candidates of a sentence, N real target
tokens of all candidates, V vocabulary.
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
from ds_seq.criterions.generator import Generator
from ds_seq.criterions.likelihoods import target_sums, token_likelihoods
from ds_seq.data.batch import Batch, Candidates, Seq2SeqInputs
from ds_seq.data.splitting import real_rows, with_targets
from ds_seq.errors import UserError
from ds_seq.models.output import ModelOutput
from ds_seq.scores.sentence_errors import Errors
from ds_seq.text.tokenizer import Symbols


class _Target(NamedTuple):
    """A candidate or a reference; see `Candidates`."""

    sentence: int
    column: int
    ids: list[int]
    error: float
    is_compared: bool
    is_reference: bool


class MinimumRiskTraining(Criterion):
    """Expected error of candidates, and perhaps the cross entropy of the reference.

    Parts: `risk` (what is minimized), `candidate_error` (mean over candidates), and with
    `ce_weight` `ce` and `nll` of the reference; in a validation `ce` and `nll` alone.

    Args:
        generate: finds the candidates.
        errors: measures them.
        sharpness: exponent of probabilities.
        include_reference: whether the reference is one more candidate.
        ce_weight: weight w of w * ce + (1 - w) * risk.
        cross_entropy: the criterion of validations, with the smoothing of `ce`.
    """

    prepares = True

    def __init__(
        self,
        generate: Generator,
        errors: Errors,
        sharpness: float,
        include_reference: bool,
        ce_weight: float,
        cross_entropy: CrossEntropy,
    ) -> None:
        self.generate, self._errors = generate, errors
        self.sharpness, self.ce_weight = sharpness, ce_weight
        self.include_reference, self.cross_entropy = include_reference, cross_entropy

    def prepare(self, batch: Batch, current: Current) -> Batch:
        """Return the batch of all candidates; see `Criterion.prepare`.

        Raises:
            UserError: the batch has inputs of another kind than those of an encoder-decoder.
        """
        if not current.model.training:
            return batch
        if not isinstance(batch.inputs, Seq2SeqInputs):
            raise UserError(
                "criterion.name: minimum_risk generates from the sources of an encoder-decoder, "
                "and this task has other inputs; use another criterion"
            )
        rows = real_rows(batch.labels, batch.mask, batch.num_sentences)
        references = [row[:-1] for row in rows]
        found = self.generate(batch, current)
        if not references:
            return replace(batch, candidates=_no_candidates(batch))
        targets = [
            target
            for sentence, (reference, ids) in enumerate(zip(references, found, strict=True))
            for target in self._targets(sentence, reference, ids)
        ]
        return _batch_of(batch, targets, self.generate.search.symbols)

    def _targets(
        self, sentence: int, reference: list[int], found: Sequence[list[int]]
    ) -> list[_Target]:
        """Return the candidates of a sentence, and its reference last if it is needed."""
        others = [ids for ids in found if not self._reads_reference or ids != reference]
        errors = self._errors(others, reference)
        targets = [
            _Target(sentence, column, ids, error, is_compared=True, is_reference=False)
            for column, (ids, error) in enumerate(zip(others, errors, strict=True))
        ]
        if self._reads_reference:
            # also if the model has found the reference itself
            counts = self.include_reference or len(others) < len(found)
            targets.append(_Target(sentence, len(others), reference, 0.0, counts, True))
        return targets

    @property
    def _reads_reference(self) -> bool:
        return self.include_reference or self.ce_weight > 0

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """Sum over the real target tokens of the references of `batch`."""
        given = batch.candidates
        if given is None:
            return self.cross_entropy(output, batch)
        nll, spread = token_likelihoods(output.logits, batch.real_labels)
        mask = batch.mask[: len(given.sentence)]  # an empty batch has a row of padding
        risk, error = self._risk(target_sums(nll, mask).neg(), given)
        total, parts = (
            (1.0 - self.ce_weight) * risk,
            {"risk": risk.detach(), "candidate_error": error},
        )
        if self.ce_weight:
            plain = self.cross_entropy
            vocab = output.logits.shape[1]
            a, b = smoothing_weights(plain.label_smoothing, vocab, plain.smoothing)
            ce = (target_sums(a * nll + b * spread, mask) * given.is_reference).sum()
            total = total + self.ce_weight * ce
            parts["ce"] = ce.detach()
            parts["nll"] = (target_sums(nll.detach(), mask) * given.is_reference).sum()
        return Loss(total, parts)

    def _risk(self, log_probs: Tensor, given: Candidates) -> tuple[Tensor, Tensor]:
        """Return the risk () and the mean error () of candidates with log P (R,).

        Both are weighted by the tokens of the references.
        """
        if len(log_probs) == 0:  # a rank without work
            return log_probs.sum(), log_probs.detach().sum()
        shape = (len(given.share), int(given.column.max()) + 1)  # (B, C)
        place = (given.sentence, given.column)
        scores = (self.sharpness * log_probs).masked_fill(~given.is_compared, -math.inf)
        table = scores.new_full(shape, -math.inf).index_put(place, scores)
        costs = scores.new_zeros(shape).index_put(place, given.cost)
        real = torch.zeros(shape, dtype=torch.bool, device=scores.device)
        real = real.index_put(place, given.is_compared)
        risk = (given.share * (table.softmax(1) * costs).sum(1)).sum()
        error = given.share * (costs * real).sum(1) / real.sum(1)
        return risk, error.sum()


def _batch_of(
    batch: Batch[Seq2SeqInputs], targets: Sequence[_Target], symbols: Symbols
) -> Batch[Seq2SeqInputs]:
    """Return the batch of these targets of the sentences of a batch."""
    device = batch.labels.device
    sentences, columns, ids, errors, compared, references = zip(*targets, strict=True)
    candidates = Candidates(
        torch.tensor(sentences, device=device),
        torch.tensor(columns, device=device),
        torch.tensor(errors, device=device),
        torch.tensor(compared, device=device),
        torch.tensor(references, device=device),
        batch.mask.sum(1).float(),
        batch.num_tokens,
    )
    framed = [[*each, symbols.eos] for each in ids]
    return replace(with_targets(batch, sentences, framed, symbols), candidates=candidates)


def _no_candidates(batch: Batch) -> Candidates:
    """Return the candidates of a batch without sentences."""
    none = batch.indices[:0]
    return Candidates(none, none, none.float(), none.bool(), none.bool(), none.float(), 0)
