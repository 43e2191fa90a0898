"""Mixtures trained by hard EM: which expert learns, and what a search by expert finds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.plain import beam_search
from ds_seq.config.generation import GenerationConfig
from ds_seq.criterions.base import Current
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.criterions.hard_em import HardEm
from ds_seq.data.batch import empty_seq2seq_batch
from ds_seq.errors import UserError
from ds_seq.generation.build import build_search
from ds_seq.models.expert_prior import attach_prior
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.names import ExpertAssignment, ExpertPrior
from tests.unit.criterions.test_minimum_risk import BATCH, SYMBOLS, tiny_model

STARTS = (4, 3, 5)


def criterion_of(assignment: ExpertAssignment = "hard") -> HardEm:
    return HardEm(STARTS, CrossEntropy(0.1, "fairseq"), assignment)


def started(start: int) -> Any:
    target = BATCH.inputs.target.clone()
    target[:, 0] = start
    return replace(BATCH, inputs=BATCH.inputs._replace(target=target))


def test_only_the_expert_under_which_a_sentence_is_most_probable_learns_from_it() -> None:
    model, criterion = tiny_model(dropout=0.5), criterion_of()
    model.eval()
    likelihoods = []
    for start in STARTS:
        with torch.no_grad():
            scores = model(started(start).inputs).logits.log_softmax(1)
        picked = scores.gather(1, BATCH.real_labels[:, None]).squeeze(1)
        likelihoods.append([float(part.sum()) for part in picked.split([3, 2, 3])])
    best = torch.tensor(likelihoods).argmax(0).tolist()
    assert len(set(best)) > 1, "the test needs sentences of different experts"

    model.train()
    read = criterion.prepare(BATCH, Current(model, 0))
    assert model.training
    assert read.inputs.target[:, 0].tolist() == [STARTS[expert] for expert in best]
    torch.testing.assert_close(read.inputs.target[:, 1:], BATCH.inputs.target[:, 1:])
    loss = criterion(model.eval()(read.inputs), read)
    won = [int(loss.parts[f"expert{number}"]) for number in (1, 2, 3)]
    lengths = [3, 2, 3]
    assert won == [sum(n for n, z in zip(lengths, best, strict=True) if z == k) for k in range(3)]
    smallest = sum(-max(row) for row in torch.tensor(likelihoods).T.tolist())
    assert float(loss.parts["nll"]) == pytest.approx(smallest, rel=1e-5)


def mixture_of(prior: ExpertPrior, dropout: float = 0.0) -> Seq2SeqTransformer:
    model = tiny_model(dropout=dropout)
    assert isinstance(model, Seq2SeqTransformer)
    if prior == "learned":
        assert attach_prior(model, 8, 3, dropout, seed=1) == 8 * 9 + 9 * 3
        assert model.expert_prior is not None
        model.expert_prior.outer.weight.data.mul_(4.0)  # otherwise nearly uniform
    return model


def slow(model: Seq2SeqTransformer, row: int, smoothing: float) -> tuple[Any, Any, Any]:
    """Log-priors, smoothed and plain cross entropies of a sentence by expert, (K,) each."""
    inputs, ce, nll = BATCH.inputs, [], []
    source, labels = (part[row : row + 1] for part in (inputs.source, BATCH.labels))
    real, kept = inputs.source_mask[row], int(BATCH.mask[row].sum())
    hidden = model.encode(source, real[None]).hidden[0]
    for start in STARTS:
        target = inputs.target[row : row + 1].clone()
        target[:, 0] = start
        one = inputs._replace(
            source=source, source_mask=real[None], target=target, num_targets=kept
        )
        one = one._replace(target_mask=BATCH.mask[row : row + 1], num_sources=int(real.sum()))
        scores = model(one).logits.log_softmax(1)
        picked = scores.gather(1, labels[0, :kept, None]).squeeze(1)
        others = smoothing / (scores.shape[1] - 1)
        nll.append(-picked.sum())
        ce.append(-(picked * (1 - smoothing - others) + others * scores.sum(1)).sum())
    if model.expert_prior is None:
        prior = torch.full((3,), 1 / 3).log()
    else:
        mean = torch.stack([state for state, is_real in zip(hidden, real, strict=True) if is_real])
        network: Any = model.expert_prior
        inner = torch.tanh(network.inner.weight @ mean.mean(0) + network.inner.bias)
        prior = (network.outer.weight @ inner + network.outer.bias).log_softmax(0)
    return prior, torch.stack(ce), torch.stack(nll)


@pytest.mark.parametrize("prior", ["uniform", "learned"])
@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_values_and_gradients_are_those_of_the_definition(
    assignment: ExpertAssignment, prior: ExpertPrior
) -> None:
    model, criterion = mixture_of(prior).eval(), criterion_of(assignment)
    read = criterion.prepare(BATCH, Current(model, 0))
    assert read.counted_tokens == BATCH.num_tokens
    loss = criterion(model(read.inputs), read)
    loss.total.backward()
    ours = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    total, winners = torch.zeros(()), set()
    for row in range(len(BATCH.labels)):
        log_prior, ce, nll = slow(model, row, 0.1)
        if assignment == "soft":
            total = total - (log_prior - ce).logsumexp(0)
            continue
        best = int((log_prior - nll).argmax())
        winners.add(best)
        total = total + ce[best] - (log_prior[best] if prior == "learned" else 0.0)
    total.backward()
    assert assignment == "soft" or len(winners) > 1, "the test needs different experts"
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-5)
    for name, value in model.named_parameters():
        torch.testing.assert_close(ours[name], value.grad, atol=2e-5, rtol=1e-4, msg=name)
    experts = sum(float(loss.parts[f"expert{number}"]) for number in (1, 2, 3))
    assert experts == pytest.approx(BATCH.num_tokens)


def test_shares_of_a_soft_mixture_are_found_without_dropout_and_weight_its_gradient() -> None:
    model, criterion = mixture_of("learned", dropout=0.5).train(), criterion_of("soft")
    read = criterion.prepare(BATCH, Current(model, 0))
    assert model.training and read.mixture is not None
    with torch.no_grad():
        found = [slow(model.eval(), row, 0.1) for row in range(len(BATCH.labels))]
    shares = torch.stack([(prior - ce).softmax(0) for prior, ce, _ in found], 1)
    torch.testing.assert_close(read.mixture.shares, shares, atol=1e-5, rtol=1e-4)
    # a loss whose shares are 1 for one expert has the gradient of a hard mixture
    ones = torch.nn.functional.one_hot(torch.tensor([2, 0, 1]), 3).T.float()
    certain = replace(read, mixture=read.mixture._replace(shares=ones))
    criterion(model(certain.inputs), certain).total.backward()
    ours = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    for row, expert in enumerate((2, 0, 1)):
        prior, ce, _ = slow(model, row, 0.1)
        (ce[expert] - prior[expert]).backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(ours[name], value.grad, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("prior", ["uniform", "learned"])
@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_an_empty_batch_has_the_same_parts(
    assignment: ExpertAssignment, prior: ExpertPrior
) -> None:
    model, criterion = mixture_of(prior).train(), criterion_of(assignment)
    read = criterion.prepare(empty_seq2seq_batch(SYMBOLS), Current(model, 0))
    loss = criterion(model(read.inputs), read)
    loss.total.backward()
    has_prior = assignment == "hard" and prior == "learned"
    names = {"ce", "nll", "expert1", "expert2", "expert3"}
    assert set(loss.parts) == names | ({"prior"} if has_prior else set())
    assert all(float(part) == 0.0 for part in loss.parts.values()) and loss.total.item() == 0.0
    assert all(value.grad is not None for value in model.parameters())


def test_a_search_by_all_experts_finds_what_each_of_them_finds() -> None:
    model, source = tiny_model().eval(), (BATCH.inputs.source, BATCH.inputs.source_mask)

    def found(expert: Any) -> list[Any]:
        settings = GenerationConfig(beam=2, max_len_a=0, max_len_b=3, expert=expert)
        return build_search(settings, SYMBOLS, 64, experts=STARTS).search(model, *source)

    of_each = [found(expert) for expert in (1, 2, 3)]
    assert found("all") == [
        [of_one[row][0] for of_one in of_each] for row in range(len(BATCH.labels))
    ]
    assert of_each[0] != of_each[1]
    plain = beam_search(replace(SYMBOLS, start=3), beam=2, max_len_a=0, max_len_b=3)
    assert of_each[1] == plain.search(model, *source)


@pytest.mark.parametrize(("expert", "starts"), [(4, STARTS), (2, ()), ("all", ())])
def test_an_expert_that_does_not_exist_is_refused(expert: Any, starts: tuple[int, ...]) -> None:
    settings = GenerationConfig(expert=expert)
    with pytest.raises(UserError, match=f"expert {expert}: the model "):
        build_search(settings, SYMBOLS, 64, experts=starts)
