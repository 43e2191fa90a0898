"""Our search finds what fairseq's generator found for the same weights and sources.

`benchmarks/fairseq_parity.py --write-test-data` has recorded it: weights of a tiny model, sources
drawn at random, and all hypotheses of fairseq's beam, as ids and numbers.

Shapes: B sentences, S source length, K beam width, T target length with its end symbol.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from ds_seq.config.model import TransformerConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.search.hypotheses import Hypothesis
from tests.batches import padded
from tests.unit.search.search_checks import pad
from tests.unit.search.table_model import SYMBOLS, TableModel, slow_beam_search
from tests.values import beam_search

RECORDED = Path(__file__).resolve().parents[2] / "data" / "fairseq_search.safetensors"
EOS = 2
BEAMS, LENGTH_PENALTIES = (1, 4, 5, 10), (0.6, 1.0, 1.2)


class Recorded(NamedTuple):
    """The file."""

    model: Seq2SeqTransformer
    max_len_b: int
    tensors: dict[str, Tensor]


class FairseqResult(NamedTuple):
    """What fairseq found for one sentence, the best first."""

    tokens: list[list[int]]
    scores: list[float]


@cache
def recorded() -> Recorded:
    with safe_open(RECORDED, "pt") as file:
        notes = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    config = TransformerConfig.model_validate(json.loads(notes["config"]))
    model = build_seq2seq(config, int(notes["vocab_size"]), 1, 0, seed=1).eval()
    weights = {
        name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
        if name.startswith("model.")
    }
    model.load_state_dict(weights)
    return Recorded(model, int(notes["max_len_b"]), tensors)


def theirs(beam: int, length_penalty: float) -> list[FairseqResult]:
    tokens = recorded().tensors[f"tokens.{beam}.{length_penalty}"].long()  # (B, K, T)
    scores = recorded().tensors[f"scores.{beam}.{length_penalty}"]  # (B, K)
    assert tokens.shape[:2] == scores.shape == (32, beam)
    return [
        FairseqResult([row[: row.index(EOS)] for row in sentence], sentence_scores)
        for sentence, sentence_scores in zip(tokens.tolist(), scores.tolist(), strict=True)
    ]


def ours(beam: int, length_penalty: float, num_best: int) -> list[list[Hypothesis]]:
    search = beam_search(
        SYMBOLS,
        beam=beam,
        length_penalty=length_penalty,
        max_len_b=recorded().max_len_b,
        num_best=num_best,
    )
    return search.search(recorded().model, *padded(recorded().tensors["sources"].long()))


@pytest.mark.parametrize("length_penalty", LENGTH_PENALTIES)
@pytest.mark.parametrize("beam", BEAMS)
def test_all_hypotheses_are_those_of_fairseq(beam: int, length_penalty: float) -> None:
    for expected, found in zip(
        theirs(beam, length_penalty), ours(beam, length_penalty, num_best=beam), strict=True
    ):
        assert [h.tokens for h in found] == expected.tokens
        assert [h.score for h in found] == pytest.approx(expected.scores, abs=1e-4)


@pytest.mark.parametrize("length_penalty", LENGTH_PENALTIES)
@pytest.mark.parametrize("beam", BEAMS)
def test_stopping_early_keeps_the_best(beam: int, length_penalty: float) -> None:
    for expected, (best,) in zip(
        theirs(beam, length_penalty), ours(beam, length_penalty, num_best=1), strict=True
    ):
        assert best.tokens == expected.tokens[0]
        assert best.score == pytest.approx(expected.scores[0], abs=1e-4)


def test_the_recorded_searches_differ() -> None:
    """A comparison where beam, length penalty and limits change nothing would say nothing."""
    best = {
        (beam, penalty): [found.tokens[0] for found in theirs(beam, penalty)]
        for beam in BEAMS
        for penalty in LENGTH_PENALTIES
    }
    assert len({str(translations) for translations in best.values()}) >= 8
    sources = recorded().tensors["sources"]
    lengths = sources.ne(1).sum(1).tolist()
    limits = [int(1.2 * length) + recorded().max_len_b for length in lengths]
    at_limit = [len(t) == m for t, m in zip(best[5, 1.0], limits, strict=True)]
    assert any(at_limit)
    assert not all(at_limit)
    assert torch.unique(sources[sources > 3]).numel() > 20


def test_all_candidates_may_continue_one_hypothesis() -> None:
    """Which hypotheses the 2 K candidates of a sentence continue does not matter, as in fairseq.

    Here the best hypothesis outdoes the others by far after one step, and then anything may follow.
    """
    beam, limit, sources = 3, 4, [[word, EOS] for word in range(3, 11)]
    for source in sources:
        model = TableModel(11, seed=source[0])
        model.table *= 0.2
        first_row = (7 * EOS + int(model.encode(*pad([source]))) + 1) % len(model.table)
        model.table[first_row, 5] += 20
        search = beam_search(SYMBOLS, beam=beam, num_best=beam, max_len_a=0, max_len_b=limit)
        (found,) = search.search(model, *pad([source]))
        expected = slow_beam_search(model, source, beam, limit, length_penalty=1.0)
        assert [h.tokens for h in found] == [tokens for _, tokens in expected]
