"""Noisy-channel scores are weighted sums; weights are those with the best translations."""

from __future__ import annotations

import pytest
import torch

from ds_seq.config.model import DecoderOnlyConfig
from ds_seq.data.source import TokenBlock
from ds_seq.data.text_batch import text_batch
from ds_seq.generation.forced import ForcedPair, score_texts
from ds_seq.generation.noisy_channel import Weights, best_first, combined, tuned
from ds_seq.models import build_model
from ds_seq.search.hypotheses import Hypothesis
from tests.unit.search.table_model import SYMBOLS
from tests.values import beam_search

LINES = [0, 0, 0, 1, 1]


def _scored(*scores: float) -> list[Hypothesis]:
    return [Hypothesis([7], score, [score]) for score in scores]


OWN = _scored(-1.0, -1.5, -2.0, -1.0, -1.2)
CHANNEL = _scored(-3.0, -1.0, -2.5, -2.0, -2.0)
LANGUAGE_MODEL = _scored(-2.0, -4.0, -1.0, -5.0, -1.0)


def test_scores_are_weighted_sums() -> None:
    found = combined(OWN, CHANNEL, LANGUAGE_MODEL, Weights(0.5, 0.25))
    expected = [-1 - 1.5 - 0.5, -1.5 - 0.5 - 1, -2 - 1.25 - 0.25, -1 - 1 - 1.25, -1.2 - 1 - 0.25]
    assert [each.score for each in found] == pytest.approx(expected)
    assert [each.token_scores for each in found] == [each.token_scores for each in OWN]
    assert [each.score for each in combined(OWN, None, None, Weights(1.0, 1.0))] == [
        each.score for each in OWN
    ]


def test_the_best_of_each_line_comes_first() -> None:
    assert best_first(LINES, OWN) == [0, 1, 2, 3, 4]
    assert best_first(LINES, combined(OWN, CHANNEL, None, Weights(1.0, 0.0))) == [1, 0, 2, 3, 4]
    assert best_first(LINES, combined(OWN, None, LANGUAGE_MODEL, Weights(0.0, 1.0))) == [
        0, 2, 1, 4, 3,
    ]  # fmt: skip


def test_weights_are_those_that_choose_the_best_rows() -> None:
    wanted = {1, 4}  # the channel model prefers the first, the language model the second
    weights, quality = tuned(
        lambda tried: combined(OWN, CHANNEL, LANGUAGE_MODEL, tried),
        lambda chosen: float(len(wanted & set(chosen))),
        LINES,
        ((0.0, 1.0), (0.0, 0.2, 3.0)),
    )
    assert (weights, quality) == (Weights(1.0, 0.2), 2.0)


def test_a_language_model_scores_the_targets_alone() -> None:
    section = DecoderOnlyConfig.model_validate(
        {"name": "decoder_only", "d_model": 8, "num_heads": 2, "ffn_dim": 8, "decoder_layers": 1}
    )
    model = build_model(section, 9, 1, 0, seed=1).eval()
    pairs = [ForcedPair([], [4, 5, 6]), ForcedPair([7], [8])]
    search = beam_search(SYMBOLS, beam=1)
    found = score_texts(model, search, pairs, torch.device("cpu"))
    for pair, hypothesis in zip(pairs, found, strict=True):
        labels = [*pair.target, SYMBOLS.eos]
        batch = text_batch(TokenBlock.of([labels]), SYMBOLS)
        scores = model(batch.inputs).logits.log_softmax(-1)
        expected = [float(scores[place, label]) for place, label in enumerate(labels)]
        assert hypothesis.token_scores == pytest.approx(expected, abs=1e-5)
        assert hypothesis.score == pytest.approx(sum(expected) / len(expected), abs=1e-5)
