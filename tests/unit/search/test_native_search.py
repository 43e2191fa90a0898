"""A beam search in C finds what the search by operators finds, with the same scores."""

from __future__ import annotations

import pytest
import torch

from ds_seq.config.model import TransformerConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.models.packing import pack_weights
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.modules import native
from ds_seq.search import beam_search as module
from ds_seq.search.native_search import NativeSearch
from tests.native_kernels import kernels
from tests.unit.search.small_model import VOCAB
from tests.values import beam_search

SETTINGS = [
    {"beam": 1},
    {"beam": 4, "num_best": 4},
    {"beam": 5, "num_best": 2, "length_penalty": 0.6, "length_penalty_form": "gnmt"},
    {"beam": 3, "num_best": 3, "length_penalty": -0.5, "min_len": 3},
    {"beam": 4, "length_penalty": 0.0, "unk_penalty": 2.0, "temperature": 0.7},
    {"beam": 12, "num_best": 12, "max_len_a": 0.0, "max_len_b": 2},  # wider than the vocabulary
]


def make_model() -> Seq2SeqTransformer:
    """Return a model of random weights whose widths are whole vectors."""
    sizes = {"d_model": 32, "ffn_dim": 48, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 2}
    model = build_seq2seq(TransformerConfig(**sizes), VOCAB, 1, 0, seed=3).eval()
    with torch.no_grad():  # an untrained model says nearly the same everywhere
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return sources (B, S) of several lengths, and their mask."""
    lengths = torch.tensor([4, 9, 1, 6, 2, 7])
    tokens = torch.randint(4, VOCAB, (6, 9), generator=torch.Generator().manual_seed(5))
    mask = torch.arange(9) < lengths[:, None]
    return tokens.masked_fill(~mask, 1), mask


@pytest.fixture
def runs(tmp_path_factory, monkeypatch):
    """Use the kernels; return the list to which each search in C adds itself."""
    found, searches = kernels(tmp_path_factory.getbasetemp()), []
    monkeypatch.setattr(native, "library", lambda: found)

    class Noted(NativeSearch):
        def run(self):
            searches.append(self)
            return super().run()

    monkeypatch.setattr(module, "NativeSearch", Noted)
    return searches


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_finds_the_same(runs, settings):
    model = make_model()
    search = beam_search(**{"max_len_a": 1.0, "max_len_b": 12, **settings})
    expected = search.search(model, *batch())
    assert not runs
    with torch.no_grad():
        pack_weights(model)
    found = search.search(model, *batch())
    assert len(runs) == 1
    for mine, theirs in zip(found, expected, strict=True):
        assert [each.tokens for each in mine] == [each.tokens for each in theirs]
        for one, other in zip(mine, theirs, strict=True):
            assert one.score == pytest.approx(other.score, rel=1e-5, abs=1e-5)
            assert one.token_scores == pytest.approx(other.token_scores, rel=1e-5, abs=1e-5)


def test_company_does_not_change_a_digit(runs):
    model = make_model()
    with torch.no_grad():
        pack_weights(model)
    search = beam_search(beam=4, num_best=4)
    tokens, mask = batch()
    together = search.search(model, tokens, mask)
    for index in range(len(tokens)):
        length = int(mask[index].sum())
        alone = tokens[index : index + 1, :length], mask[index : index + 1, :length]
        assert search.search(model, *alone)[0] == together[index]


def test_a_diverged_model_has_no_translation(runs):
    model = make_model()
    with torch.no_grad():
        model.target_embedding.weight[5:9] = float("nan")
        pack_weights(model)
    found = beam_search(beam=3).search(model, *batch())
    assert len(runs) == 1
    assert all(each[0].tokens == [] and each[0].score == -float("inf") for each in found)


@pytest.mark.parametrize("settings", [{"no_repeat_ngram": 2}, {"prompts": True}])
def test_other_searches_are_left_to_the_operators(runs, settings):
    model = make_model()
    with torch.no_grad():
        pack_weights(model)
    options = {key: value for key, value in settings.items() if key != "prompts"}
    search = beam_search(beam=2, **options)
    if "prompts" in settings:
        search = module.replace(search, prompts=True)
    assert len(search.search(model, *batch())) == 6
    assert not runs
