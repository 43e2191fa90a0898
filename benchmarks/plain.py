"""Searches and batches with the schema's defaults, except for options that a benchmark sets."""

from __future__ import annotations

from typing import Any

from ds_seq.config.generation import GenerationConfig
from ds_seq.generation.translate import BatchLimits
from ds_seq.search.beam_search import BeamSearch
from ds_seq.text.tokenizer import Symbols

_SEARCH = (
    "beam",
    "length_penalty",
    "length_penalty_form",
    "unk_penalty",
    "temperature",
    "max_len_a",
    "max_len_b",
    "min_len",
    "no_repeat_ngram",
)


# the order of special symbols in vocabularies that ds_seq trains
_SYMBOLS = Symbols(pad=1, eos=2, unk=3, start=2, bos=0)


def beam_search(symbols: Symbols = _SYMBOLS, **options: Any) -> BeamSearch:
    """Return a search; `options` are those of `BeamSearch`."""
    fields = GenerationConfig.model_fields
    defaults = {name: fields[name].default for name in _SEARCH}
    return BeamSearch(symbols, **{**defaults, **options})


def batch_limits(**options: int) -> BatchLimits:
    """Return limits for sources of up to 1024 tokens; `options` are those of `BatchLimits`."""
    fields = GenerationConfig.model_fields
    sizes = {name: fields[name].default for name in ("max_tokens", "max_sentences")}
    return BatchLimits(**{**sizes, "max_source_length": 1024, **options})
