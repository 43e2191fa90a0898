"""Search in a part of the vocabulary.

Shapes: B sentences, S source length, N hypotheses, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ds_seq.errors import UserError
from ds_seq.models.cache import DecoderCache
from ds_seq.models.packing import pack_weights
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.ensemble import Ensemble
from ds_seq.search.prefix import Prefixes
from ds_seq.search.shortlist import Shortlist, ShortlistSearch
from tests.unit.search.search_checks import alike, check_batches, distinct
from tests.unit.search.small_model import VOCAB, make_model
from tests.unit.search.table_model import EOS, PAD, SYMBOLS
from tests.values import beam_search

SPECIAL = torch.tensor(sorted({SYMBOLS.eos, SYMBOLS.unk, SYMBOLS.start, *SYMBOLS.never_generated}))
SEARCH = beam_search(SYMBOLS, beam=3, num_best=3, max_len_a=1, max_len_b=5)
SOURCES = [[5, 9, 14, EOS], [11, EOS], [4, 4, 17, 8, 6, EOS], [16, 7, EOS], [5, 12, EOS]]
MODEL = make_model(None)


def restricted(shortlist: Shortlist, search: BeamSearch = SEARCH) -> ShortlistSearch:
    settings: dict[str, Any] = {each.name: vars(search)[each.name] for each in fields(BeamSearch)}
    return ShortlistSearch(**settings, shortlist=shortlist)


def random_list(size: int) -> Shortlist:
    generator = torch.Generator().manual_seed(size)
    return Shortlist(torch.randint(3, VOCAB, (VOCAB, size), generator=generator), SPECIAL, VOCAB)


def source(ids: list[int]) -> tuple[Tensor, Tensor]:
    row = torch.tensor([ids])
    return row, row != PAD


class Masked:
    """A model that gives the tokens outside of a set no probability."""

    def __init__(self, allowed: Tensor) -> None:
        self._ruled_out = ~allowed

    def encode(self, source: Tensor, source_mask: Tensor) -> Any:
        return MODEL.encode(source, source_mask)

    def start_cache(self, encoded: Any, beam: int, max_length: int) -> DecoderCache:
        return MODEL.start_cache(encoded, beam, max_length)

    def decode_step(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        return MODEL.decode_step(tokens, cache).masked_fill(self._ruled_out, -math.inf)


def test_a_list_of_all_tokens_changes_nothing() -> None:
    everything = torch.arange(VOCAB).expand(VOCAB, -1)
    search = restricted(Shortlist(everything, SPECIAL, VOCAB))
    found = []
    for ids in SOURCES:
        (ours,), (plain,) = (each.search(MODEL, *source(ids)) for each in (search, SEARCH))
        assert alike(ours, plain)
        found.append(ours)
    assert distinct(found) > 10


@pytest.mark.parametrize("size", [2, 6])
def test_it_is_the_search_of_a_model_without_the_other_tokens(size: int) -> None:
    shortlist = random_list(size)
    search, found = restricted(shortlist), []
    for ids in SOURCES:
        allowed = shortlist.allowed(*source(ids))[0]
        assert not bool(allowed.all())
        (ours,), (plain,) = (
            search.search(MODEL, *source(ids)),
            SEARCH.search(Masked(allowed), *source(ids)),
        )
        assert alike(ours, plain)
        assert all(bool(allowed[token]) for each in ours for token in each.tokens)
        found.append(ours)
    assert distinct(found) > 5


def test_a_sentence_gets_the_same_in_any_batch() -> None:
    check_batches(MODEL, SOURCES, restricted(random_list(3)))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [{}, {"int8": True}])
def test_packed_weights_score_the_same_tokens(form: dict[str, bool]) -> None:
    model, hidden = make_model(None), torch.randn(7, 16)
    tokens = torch.tensor([3, 8, 4, 18])
    expected = model._scores(hidden).index_select(1, tokens)
    pack_weights(model, **form)
    for exact, tolerance in ((expected, 0.2), (model._scores(hidden)[:, tokens], 1e-5)):
        torch.testing.assert_close(model.scorer(tokens)(hidden), exact, atol=tolerance, rtol=0.0)


def test_what_knows_the_whole_vocabulary_is_refused() -> None:
    search = restricted(random_list(3))
    with pytest.raises(UserError, match="--shortlist: cannot be combined with --prefix"):
        replace(search, guides=(Prefixes({}),))
    with pytest.raises(UserError, match="--shortlist: needs one Transformer"):
        search.search(Ensemble([MODEL, MODEL]), *source(SOURCES[0]))
    with pytest.raises(UserError, match="--shortlist: needs one Transformer"):
        search.search(MODEL, *source(SOURCES[0]), any_rank=bool)
