"""Shallow fusion against a search that sums log-probabilities as its definition reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ds_seq.config.model import DecoderOnlyConfig
from ds_seq.models import build_model
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.ensemble import Ensemble
from ds_seq.search.fusion import Fusion
from ds_seq.search.prefix import Prefixes
from tests.unit.search.search_checks import (
    VOCAB,
    alike,
    check_batches,
    distinct,
    draw_sources,
    pad,
)
from tests.unit.search.table_model import EOS, SYMBOLS, TableModel, slow_beam_search
from tests.values import beam_search

WEIGHT = 0.7


class Summed(TableModel):
    """A model that says in plain Python what translation and language model say together."""

    def __init__(self, model: TableModel, language_model: TableModel) -> None:
        super().__init__(VOCAB)
        self.model, self.language_model = model, language_model

    def next_log_probs(self, source: list[int], prefix: list[int]) -> list[float]:
        own = self.model.next_log_probs(source, prefix)
        others = self.language_model.next_log_probs([EOS], prefix)
        return [one + WEIGHT * other for one, other in zip(own, others, strict=True)]


MODEL, LANGUAGE_MODEL = TableModel(VOCAB), TableModel(VOCAB, seed=9)


def _search(beam: int, weight: float = WEIGHT) -> BeamSearch:
    fusion = Fusion(LANGUAGE_MODEL, weight, EOS)
    settings = beam_search(SYMBOLS, beam=beam, num_best=beam, max_len_a=0, max_len_b=5)
    return replace(settings, guides=(fusion,))


@pytest.mark.parametrize("beam", [1, 2, 5])
def test_it_is_the_search_over_weighted_sums(beam: int) -> None:
    sources, search = draw_sources(12), _search(beam)
    found = search.search(MODEL, *pad(sources))
    summed = Summed(MODEL, LANGUAGE_MODEL)
    for source, hypotheses in zip(sources, found, strict=True):
        expected = slow_beam_search(summed, source, beam, 5, 1.0)
        assert [h.tokens for h in hypotheses] == [tokens for _, tokens in expected]
        assert [h.score for h in hypotheses] == pytest.approx(
            [score for score, _ in expected], abs=1e-4
        )
    assert distinct(found) >= 6 * beam


def test_a_sentence_gets_the_same_in_any_batch() -> None:
    check_batches(MODEL, draw_sources(15), _search(3))


def test_no_weight_is_no_language_model_and_other_guides_go_with_it() -> None:
    sources = pad(draw_sources(8))
    plain = replace(_search(3), guides=())
    expected = plain.search(MODEL, *sources)
    assert all(map(alike, _search(3, 0.0).search(MODEL, *sources), expected))
    fused = _search(3)
    assert not all(map(alike, fused.search(MODEL, *sources), expected))
    led = replace(fused, guides=(*fused.guides, Prefixes(common=[5, 4])))
    for hypotheses in led.search(MODEL, *sources):
        assert all(h.tokens[:2] == [5, 4] for h in hypotheses)


def test_an_ensemble_goes_with_it() -> None:
    sources, search = pad(draw_sources(8)), _search(3)
    found = search.search(Ensemble([MODEL, MODEL]), *sources)
    assert all(map(alike, found, search.search(MODEL, *sources)))


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="is negative"):
        Fusion(LANGUAGE_MODEL, -0.1, EOS)


@pytest.mark.parametrize("mixer", ["attention", "retention"])
def test_the_state_of_a_transformer_follows_its_hypotheses(mixer: str) -> None:
    """Scores of what was found are those of both models over the whole text."""
    sizes = {"d_model": 16, "decoder_layers": 2, "num_heads": 2, "ffn_dim": 24, "dropout": 0.0}
    positions = "none" if mixer == "retention" else "rotary"
    section = DecoderOnlyConfig.model_validate(
        {"name": "decoder_only", **sizes, "decoder_mixer": mixer, "positions": positions}
    )
    model = build_model(section, VOCAB, 1, 0, seed=4).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    sources = draw_sources(9)
    search = replace(_search(4), guides=(Fusion(model, WEIGHT, EOS),))
    for source, hypotheses in zip(sources, search.search(MODEL, *pad(sources)), strict=True):
        for hypothesis in hypotheses:
            labels = torch.tensor([*hypothesis.tokens, EOS])
            encoded = model.encode(torch.tensor([[EOS]]), torch.ones(1, 1).bool())
            cache = model.start_cache(encoded, 1, len(labels))
            with torch.no_grad():
                logits = [
                    model.decode_step(torch.tensor([token]), cache)
                    for token in [EOS, *hypothesis.tokens]
                ]
            scores = torch.cat(logits).log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
            own = torch.tensor(MODEL.forced(source, hypothesis.tokens))
            expected = (own + WEIGHT * scores).tolist()
            assert hypothesis.token_scores == pytest.approx(expected, abs=1e-4)
