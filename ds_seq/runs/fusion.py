"""Give a search the language model that its settings name."""

from __future__ import annotations

from dataclasses import replace

import torch

from ds_seq.config.generation import GenerationConfig
from ds_seq.errors import UserError
from ds_seq.runs.card import LoadedRun
from ds_seq.runs.open import load_packed
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.fusion import Fusion
from ds_seq.text.tokenizer import Tokenizer

_TASK = "language_modeling"


def load_language_model(
    name: str, option: str, tokenizer: Tokenizer | None, device: torch.device
) -> LoadedRun:
    """Load a language model for texts of a target.

    Args:
        name: its run folder or export.
        option: the option that named it, for messages.
        tokenizer: tokenizer of the target whose ids it is to read; None: it reads text.
        device: device of the model.

    Raises:
        UserError: it cannot be loaded, is no language model, or has another vocabulary.
    """
    run = load_packed(name, "best", None, device)
    if run.card.task != _TASK:
        raise UserError(
            f"{option} {name}: is a model of task {run.card.task}; give one of task {_TASK}"
        )
    if tokenizer is not None and run.tokenizers.target.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{option} {name}: has another vocabulary than the target of the translation; copy "
            "its vocabulary to data.dir of the language model before `ds-seq prepare`"
        )
    return run


def with_language_model(
    search: BeamSearch, settings: GenerationConfig, tokenizer: Tokenizer, device: torch.device
) -> BeamSearch:
    """Return a search with the language model of `settings`, if they have one.

    Args:
        search: the search without it.
        settings: settings of generation.
        tokenizer: tokenizer of the target.
        device: device of the models.

    Raises:
        UserError: see `load_language_model`.
    """
    if settings.lm is None:
        return search
    run = load_language_model(settings.lm, "--lm", tokenizer, device)
    fusion = Fusion(run.searched, settings.lm_weight, run.tokenizers.symbols.start)
    longest = run.card.max_positions
    if search.max_positions is not None:
        longest = min(longest, search.max_positions)
    return replace(search, guides=(fusion, *search.guides), max_positions=longest)
