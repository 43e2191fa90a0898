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
from tests.unit.criterions.test_minimum_risk import BATCH, SYMBOLS, tiny_model

STARTS = (4, 3, 5)


def criterion_of() -> HardEm:
    return HardEm(STARTS, CrossEntropy(0.1, "fairseq"))


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


def test_an_empty_batch_has_the_same_parts() -> None:
    model, criterion = tiny_model().train(), criterion_of()
    read = criterion.prepare(empty_seq2seq_batch(SYMBOLS), Current(model, 0))
    loss = criterion(model(read.inputs), read)
    loss.total.backward()
    assert set(loss.parts) == {"ce", "nll", "expert1", "expert2", "expert3"}
    assert all(float(part) == 0.0 for part in loss.parts.values())


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
