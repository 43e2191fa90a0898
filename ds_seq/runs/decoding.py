"""Combine one or more trained models with a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ds_seq.config.generation import GenerationConfig
from ds_seq.errors import UserError
from ds_seq.generation.build import Decoding, build_decoding
from ds_seq.generation.pipeline import Translator
from ds_seq.runs.card import LoadedRun, StoredRun
from ds_seq.runs.fusion import with_language_model
from ds_seq.runs.shortlist import with_shortlist
from ds_seq.search.ensemble import Ensemble


def run_decoding(
    runs: Sequence[LoadedRun | StoredRun], settings: GenerationConfig, num_best: int = 1
) -> Decoding:
    """Build the search and batch limits for trained models.

    The longest sentence is the longest that all models accept.

    Args:
        runs: at least one trained model; all have the same vocabulary.
        settings: settings of generation.
        num_best: number of hypotheses to return per sentence.
    """
    cards = [run.card for run in runs]
    max_positions = min(card.max_positions for card in cards)
    longest = min(card.longest_source for card in cards)
    symbols, experts = cards[0].tokenizers.symbols, cards[0].expert_ids
    return build_decoding(settings, symbols, max_positions, longest, num_best, experts)


def run_translator(
    runs: Sequence[LoadedRun],
    settings: GenerationConfig,
    device: torch.device,
    num_best: int = 1,
) -> Translator:
    """Build a translator that writes plain text and truncates long lines.

    Args:
        runs: see `run_decoding`; several models form an ensemble.
        settings: see `run_decoding`.
        device: device of the models.
        num_best: see `run_decoding`.
    """
    _, search, limits = run_decoding(runs, settings, num_best)
    search = with_language_model(search, settings, runs[0].tokenizers.target, device)
    prompts = runs[0].card.reads_prompts
    if len({run.card.reads_prompts for run in runs}) > 1:
        raise UserError("language models and translation models cannot search together")
    if prompts and settings.lm is not None:
        raise UserError("--lm: takes part in translation, not in the continuation of a prompt")
    if prompts:  # at least one token follows
        search, longest = replace(search, prompts=True), limits.max_source_length - 1
        limits = replace(limits, max_source_length=longest)
    if settings.shortlist is not None:
        if prompts or len(runs) > 1:
            raise UserError("--shortlist: works with one translation model; leave it out")
        search = with_shortlist(search, settings, runs[0].tokenizers, device)
    models = [run.searched for run in runs]
    tagged = next((run.card for run in runs if run.card.routes_by_language), runs[0].card)
    return Translator(
        model=models[0] if len(models) == 1 else Ensemble(models, settings.ensemble),
        tokenizers=runs[0].tokenizers,
        search=search,
        limits=limits,
        long_lines="error" if prompts else "truncate",
        form="text",
        device=device,
        tags=None if prompts else tagged.source_tags,
    )
