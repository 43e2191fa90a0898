"""Searches on a GPU: what a CPU finds; run with ``pytest -m gpu tests/gpu``.

All runs are of one random model in float64 or in the precision that is asked for, so that near-ties
of rounding do not decide what is found.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ds_seq.config.model import MoeConfig, TransformerConfig
from ds_seq.data.batch import pad_rows
from ds_seq.generation.forced import ForcedPair, score_pairs
from ds_seq.models.build import build_seq2seq
from ds_seq.models.packing import pack_weights
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.constraints import Constraints
from ds_seq.search.diversity import DiverseGroups, DiverseSiblings
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.search.prefix import Prefixes
from ds_seq.search.trie import AllowedOutputs
from tests.unit.search.table_model import SYMBOLS
from tests.values import beam_search, draws

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
VOCAB, END, LENGTH = 101, 2, 40
PLAIN = beam_search(SYMBOLS, beam=4, num_best=4, max_len_a=0, max_len_b=LENGTH)
SOURCES = [[5, 6, 7, 8, END], [9, 10, END], [11, 12, 13, END]]
KINDS = {
    "plain": PLAIN,
    "long": replace(PLAIN, min_len=LENGTH),  # the cache drops dead keys on the way
    "ngrams": replace(PLAIN, no_repeat_ngram=2),
    "sampling": replace(PLAIN, sampling=draws(top_p=0.9)),
    "prefix": replace(PLAIN, guides=(Prefixes([[20, 21], [], [22]]),)),
    "list": replace(PLAIN, guides=(AllowedOutputs([[30, 31], [30, 32], [33]], VOCAB, END),)),
    "phrases": replace(PLAIN, selection=Constraints([[[40, 41]], [], [[42]]], "any", END)),
    "groups": replace(PLAIN, selection=DiverseGroups(2, 0.5, END)),
    "siblings": replace(PLAIN, selection=DiverseSiblings(0.5)),
}


def make(moe: MoeConfig | None, dtype: torch.dtype, device: str) -> Seq2SeqTransformer:
    config = TransformerConfig(
        d_model=32,
        ffn_dim=64,
        num_heads=4,
        encoder_layers=2,
        decoder_layers=2,
        dropout=0.0,
        moe=moe,
    )
    model = (
        build_seq2seq(config, VOCAB, 1, 0, seed=1).requires_grad_(False).eval().to(device, dtype)
    )
    pack_weights(model)
    return model


def search(kind: BeamSearch, model: Seq2SeqTransformer, device: str) -> list[list[Hypothesis]]:
    return kind.search(model, *pad_rows(SOURCES, 1).to(torch.device(device)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moe", [None, MoeConfig(num_experts=4, top_k=1, capacity_factor=None)])
def test_a_gpu_finds_what_a_cpu_finds(moe: MoeConfig | None, kind: str) -> None:
    ours, theirs = (
        search(KINDS[kind], make(moe, torch.float64, device), device) for device in (DEVICE, "cpu")
    )
    for left, right in zip(ours, theirs, strict=True):
        assert [h.tokens for h in left] == [h.tokens for h in right]
        assert [h.score for h in left] == pytest.approx([h.score for h in right], abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_are_those_of_forced_decoding(dtype: torch.dtype) -> None:
    model = make(None, dtype, DEVICE)
    found = search(KINDS["long"], model, DEVICE)
    pairs = [
        ForcedPair(s, h.tokens) for s, several in zip(SOURCES, found, strict=True) for h in several
    ]
    forced = score_pairs(model, PLAIN, pairs, torch.device(DEVICE))
    scores = [h.score for several in found for h in several]
    rough = 1e-4 if dtype == torch.float32 else 0.02
    assert scores == pytest.approx([h.score for h in forced], abs=rough)
