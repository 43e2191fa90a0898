"""Every kind of search on real models: caches and what steers the search agree."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ds_seq.config.model import MoeConfig, TransformerConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.constraints import Constraints
from ds_seq.search.diversity import DiverseGroups, DiverseSiblings
from ds_seq.search.ensemble import Ensemble, EnsembleMean
from ds_seq.search.prefix import Prefixes
from ds_seq.search.trie import AllowedOutputs
from tests.batches import padded, score
from tests.unit.search.table_model import SYMBOLS
from tests.values import beam_search, draws

VOCAB, PAD, EOS = 19, 1, 2
PREFIXES = [[4, 5, 6], [], [7], [8, 8], [9, 4, 4, 4]]
PHRASES = [[[5, 6]], [], [[4], [9, 9]], [[17]], [[5], [6], [7]]]
OUTPUTS = [[a, b, c] for a in range(4, 9) for b in range(6, 12) for c in range(5, 8)]
SEARCHES = {
    "prefix": beam_search(SYMBOLS, beam=4, num_best=4, guides=(Prefixes(PREFIXES),)),
    "list": beam_search(SYMBOLS, beam=4, num_best=4, guides=(AllowedOutputs(OUTPUTS, VOCAB, EOS),)),
    "siblings": beam_search(SYMBOLS, beam=4, num_best=4, selection=DiverseSiblings(0.7)),
    "groups": beam_search(SYMBOLS, beam=4, num_best=4, selection=DiverseGroups(2, 1.5, EOS)),
    "any order": beam_search(
        SYMBOLS, beam=4, num_best=2, selection=Constraints(PHRASES, "any", EOS)
    ),
    "given order": beam_search(
        SYMBOLS, beam=4, num_best=2, selection=Constraints(PHRASES, "given", EOS)
    ),
    "samples": beam_search(SYMBOLS, num_best=3, sampling=draws(), guides=(Prefixes(PREFIXES),)),
}


def make_model(seed: int, moe: MoeConfig | None = None) -> Seq2SeqTransformer:
    config = TransformerConfig(
        d_model=16, ffn_dim=24, num_heads=2, encoder_layers=1, decoder_layers=2, moe=moe
    )
    model = build_seq2seq(config, VOCAB, 1, 0, seed=seed).eval()
    with torch.no_grad():  # an untrained model says nearly the same everywhere
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def make_sources() -> Tensor:
    src = torch.randint(4, VOCAB, (5, 7), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate((7, 3, 5, 1, 6)):
        src[row, length - 1] = EOS
        src[row, length:] = PAD
    return src


def forced(
    models: list[Seq2SeqTransformer], mean: EnsembleMean, row: Tensor, tokens: list[int]
) -> Tensor:
    """Log-probabilities of tokens and end, of one pass through each model."""
    target = torch.tensor([[*tokens, EOS]])
    tgt_in = torch.tensor([[EOS, *tokens]])
    with torch.no_grad():
        said = [score(m, row[row != PAD][None], tgt_in).logits.log_softmax(-1) for m in models]
    stacked = torch.stack(said)
    together = stacked.exp().mean(0).log() if mean == "probabilities" else stacked.mean(0)
    return together.log_softmax(-1).gather(2, target[:, :, None]).flatten()


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
def test_scores_are_those_of_one_full_forward(search: BeamSearch) -> None:
    model, src, generated = make_model(3), make_sources(), set()
    for row, found in zip(src, search.search(model, *padded(src)), strict=True):
        assert len(found) == search.num_best
        for hypothesis in found:
            torch.testing.assert_close(
                torch.tensor(hypothesis.token_scores),
                forced([model], "probabilities", row, hypothesis.tokens),
                atol=2e-4,
                rtol=1e-4,
            )
            generated.add(tuple(hypothesis.tokens))
    assert len(generated) >= 9


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
def test_ranks_may_run_out_of_sentences(search: BeamSearch) -> None:
    """One continues for others when it is finished, another has nothing from the start."""
    model, src = make_model(3), make_sources()
    expected = search.search(model, *padded(src))
    for rows, answer in ((src, expected), (src[:0, :1], [])):
        others = iter(range(30))

        def any_rank(flag: bool, others: Iterator[int] = others) -> bool:
            return flag or next(others, None) is not None

        found = search.search(model, *padded(rows), any_rank)
        assert [[h.tokens for h in own] for own in found] == [
            [h.tokens for h in own] for own in answer
        ]
        assert next(others, None) is None


@pytest.mark.parametrize("mean", ["probabilities", "log_probabilities"])
def test_ensembles_of_dense_and_sparse_models(mean: EnsembleMean) -> None:
    models = [make_model(3), make_model(4, MoeConfig(num_experts=4)), make_model(5)]
    src, search = make_sources(), beam_search(SYMBOLS, beam=4, num_best=3)
    for row, found in zip(src, search.search(Ensemble(models, mean), *padded(src)), strict=True):
        for hypothesis in found:
            torch.testing.assert_close(
                torch.tensor(hypothesis.token_scores),
                forced(models, mean, row, hypothesis.tokens),
                atol=2e-4,
                rtol=1e-4,
            )
