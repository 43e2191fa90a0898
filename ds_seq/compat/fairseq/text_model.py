"""Sections of a command with `--task language_modeling`: its model, its task and its data."""

from __future__ import annotations

from typing import Any

from ds_seq.compat.fairseq.adaptive import ADAPTIVE_LOSS
from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.convolutions import FCONV_LM, gated_lm_section
from ds_seq.compat.fairseq.language_models import (
    LIGHTCONV_LM,
    LM_TASK,
    TRANSFORMER_LM,
    language_model_section,
    positions,
)
from ds_seq.compat.fairseq.recurrent import LM_NUMBERS, LSTM_LM, lstm_lm_section
from ds_seq.compat.fairseq.refusals import Refusals

LANGUAGE_MODELS = (TRANSFORMER_LM, LIGHTCONV_LM, FCONV_LM, LSTM_LM)
"""How the names of the architectures begin."""

_BLOCKS = {"none": "tokens", "eos": "line", "complete_doc": "document"}


def is_text(given: Given) -> bool:
    """Return whether the command trains a language model."""
    return bool(given["task"] == LM_TASK)


def text_model(given: Given, refusals: Refusals) -> dict[str, Any]:
    """Return the section `model` of a language model.

    Args:
        given: the arguments.
        refusals: gets what cannot be translated.
    """
    arch, arguments = str(given["arch"]), {**given.arguments, "criterion": given["criterion"]}
    if not arch.startswith(LANGUAGE_MODELS):
        refusals.add(f"--arch {arch}: no language model; there are {', '.join(LANGUAGE_MODELS)}")
        return {}
    if arch.startswith(FCONV_LM):
        return gated_lm_section(arguments, refusals)
    if arch == LSTM_LM:
        numbers = {ours: given[theirs] for theirs, ours in LM_NUMBERS.items()}
        if numbers["decoder_hidden_dim"] is None:
            numbers["decoder_hidden_dim"] = numbers["decoder_embedding_dim"]
        known = {name: value for name, value in numbers.items() if value is not None}
        return lstm_lm_section(arguments, known, positions(arguments))
    section = language_model_section(given, arguments, refusals)
    if ("adaptive" in section) != (given["criterion"] == ADAPTIVE_LOSS):
        refusals.add(
            f"--criterion {given['criterion']}: {ADAPTIVE_LOSS} goes with --adaptive-softmax-cutoff"
        )
    return section


def blocks_of(mode: str, refusals: Refusals) -> str:
    """Return the option `task.blocks` that a `--sample-break-mode` becomes; may refuse it."""
    if mode not in _BLOCKS:
        refusals.add(
            f"--sample-break-mode {mode}: not supported; there are {', '.join(_BLOCKS)}, of which "
            "none joins lines and cuts them anywhere"
        )
    return _BLOCKS.get(mode, "tokens")


def task_section(given: Given, refusals: Refusals, notes: list[str]) -> dict[str, Any]:
    """Return the section `task`.

    Args:
        given: the arguments.
        refusals: gets what cannot be translated.
        notes: gets what a user should know.
    """
    mode = given["sample_break_mode"]
    blocks = blocks_of(mode, refusals)
    if mode == "complete_doc":
        notes.append(
            "--sample-break-mode complete_doc: a document is one example here, and a long "
            "one is cut at any token"
        )
    length = min(positions(given.arguments), given["tokens_per_sample"])
    return {
        "name": LM_TASK,
        "blocks": blocks,
        "block_tokens": length,
        "random_start": False,
    }


def text_criterion(given: Given) -> dict[str, Any] | None:
    """Return the section `criterion` of adaptive softmax; None for another criterion."""
    is_adaptive = is_text(given) and given["criterion"] == ADAPTIVE_LOSS
    return {"name": "cross_entropy", "label_smoothing": 0.0} if is_adaptive else None
