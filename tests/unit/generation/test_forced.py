"""Forced decoding: the scores of a search, in one pass; and what the passes look at."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ds_seq.config.model import MoeConfig
from ds_seq.data.batch import pad_rows
from ds_seq.generation.forced import ForcedPair, attention_maps, score_pairs
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.search.penalties import LengthPenaltyForm
from tests.batches import score
from tests.unit.search.small_model import make_model
from tests.unit.search.table_model import SYMBOLS
from tests.values import beam_search, draws

PAD, EOS, UNK = 1, 2, 3
CPU = torch.device("cpu")
SOURCES = [[5, 9, 12, 4, 7, 7, EOS], [8, 6, EOS], [EOS], [10, 11, 12, 13, EOS]]
MODELS = [
    None,
    MoeConfig(num_experts=4, top_k=2),
    MoeConfig(num_experts=4, top_k=1, router="sigmoid"),
]


def same(one: Hypothesis, other: Hypothesis) -> None:
    assert one.tokens == other.tokens
    assert one.token_scores == pytest.approx(other.token_scores, abs=2e-4)
    assert one.score == pytest.approx(other.score, abs=2e-4)


@pytest.mark.parametrize("moe", MODELS, ids=["dense", "softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("exponent", "form", "unk_penalty", "temperature"),
    [(1.0, "fairseq", 0.0, 1.0), (0.6, "gnmt", 1.5, 1.0), (0.0, "fairseq", 0.0, 1.7)],
)
def test_scores_are_those_of_the_search(
    moe: MoeConfig | None,
    exponent: float,
    form: LengthPenaltyForm,
    unk_penalty: float,
    temperature: float,
) -> None:
    """All hypotheses in one batch, with padding on both sides."""
    model = make_model(moe, 3)
    beams = beam_search(
        SYMBOLS,
        beam=4,
        num_best=4,
        max_len_a=0,
        max_len_b=12,
        length_penalty=exponent,
        length_penalty_form=form,
        unk_penalty=unk_penalty,
        temperature=temperature,
    )
    # draws go where no search does, the unknown symbol included
    for search in (beams, replace(beams, sampling=draws(), num_best=8)):
        found = search.search(model, *pad_rows(SOURCES, PAD))
        pairs, expected = [], []
        for source, hypotheses in zip(SOURCES, found, strict=True):
            pairs += [ForcedPair(source, hypothesis.tokens) for hypothesis in hypotheses]
            expected += hypotheses
        for ours, theirs in zip(score_pairs(model, search, pairs, CPU), expected, strict=True):
            same(ours, theirs)
    assert any(UNK in pair.target for pair in pairs)
    assert len({tuple(pair.target) for pair in pairs}) > 20


@pytest.mark.parametrize("moe", MODELS, ids=["dense", "softmax", "sigmoid"])
def test_a_score_depends_on_no_mate(moe: MoeConfig | None) -> None:
    model, search = make_model(moe, 3), beam_search(SYMBOLS)
    pairs = [ForcedPair(source, [4 + i] * (3 * i)) for i, source in enumerate(SOURCES)]
    together = score_pairs(model, search, pairs, CPU)
    for pair, mate in zip(pairs, together, strict=True):
        (alone,) = score_pairs(model, search, [pair], CPU)
        same(alone, mate)


def test_many_rows_are_normalized_in_parts_alike() -> None:
    """More target tokens than are normalized at a time."""
    model, search = make_model(None, 3), beam_search(SYMBOLS)
    pair = ForcedPair(SOURCES[0], [4 + i % 11 for i in range(40)])
    alone, *others = score_pairs(model, search, [pair] * 16, CPU)
    assert len(alone.token_scores) == 41
    for other in others:
        same(other, alone)


def test_nothing_to_score() -> None:
    assert score_pairs(make_model(None, 3), beam_search(SYMBOLS), [], CPU) == []


def test_maps_are_those_of_the_layer_without_padding() -> None:
    model, _ = make_model(None, 3), beam_search(SYMBOLS)
    pairs = [ForcedPair(source, [4 + i] * (2 + i)) for i, source in enumerate(SOURCES)]
    every = [attention_maps(model, SYMBOLS, pairs, CPU, layer) for layer in (0, 1, 2)]
    last = attention_maps(model, SYMBOLS, pairs, CPU)
    for i, pair in enumerate(pairs):
        src, tgt = torch.tensor([pair.source]), torch.tensor([[EOS, *pair.target]])
        layers = score(model, src, tgt, "attention").layers
        assert layers is not None
        for layer in range(3):
            seen = every[layer][i]
            assert seen.shape == (len(pair.target), len(pair.source))
            expected = layers.cross_attention[layer][0].mean(0)[:-1]
            torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(last[i], every[2][i])
    assert not torch.allclose(every[0][0], every[1][0], atol=1e-3)
    with pytest.raises(IndexError):
        attention_maps(model, SYMBOLS, pairs, CPU, 3)
