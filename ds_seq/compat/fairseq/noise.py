"""Sections of a command with `--task denoising` or `--task masked_lm`."""

from __future__ import annotations

from typing import Any

from ds_seq.compat.fairseq.architectures import BARTS, ROBERTAS
from ds_seq.compat.fairseq.command import BY_DEST, Given
from ds_seq.compat.fairseq.masked_models import masked_model_section, masking
from ds_seq.compat.fairseq.model import model_section
from ds_seq.compat.fairseq.refusals import Refusals
from ds_seq.compat.fairseq.text_model import blocks_of

DENOISING, MASKED_LM = "denoising", "masked_lm"
NOISY = (DENOISING, MASKED_LM)
_SPANS, _WORDS, _TOKENS = "span-poisson", "word", "subword"
_EACH = -1  # as --replace-length: each token of what is masked
_USUAL = {DENOISING: ("complete_doc", 512), MASKED_LM: ("none", 1024)}
"""Defaults of --sample-break-mode and --tokens-per-sample."""
_DEVIATION = "initial weights are those of fairseq's Transformer; BERT's have a deviation of 0.02"


def noisy_model(given: Given, refusals: Refusals, notes: list[str]) -> dict[str, Any]:
    """Return the section `model` of a command with one of these tasks.

    Args:
        given: the arguments.
        refusals: gets what cannot be translated.
        notes: gets what a user should know.
    """
    arch, is_masked = given["arch"], given["task"] == MASKED_LM
    if is_masked and arch not in ROBERTAS:
        known = ", ".join(ROBERTAS)
        refusals.add(f"--arch {arch}: --task {MASKED_LM} goes with {known}")
        return {}
    if not is_masked and arch not in BARTS and not arch.startswith("transformer"):
        refusals.add(f"--arch {arch}: --task {DENOISING} goes with {', '.join(BARTS)}")
        return {}
    if arch in (*BARTS, *ROBERTAS):
        notes.append(f"--arch {arch}: {_DEVIATION}")
    if is_masked:
        return masked_model_section(given, {**given.arguments, **_lengths(given)}, refusals)
    return model_section(given, refusals)


def noisy_task(given: Given, refusals: Refusals, notes: list[str]) -> dict[str, Any]:
    """Return the section `task`; see `noisy_model`."""
    name = given["task"]
    usual, _ = _USUAL[name]
    mode = given["sample_break_mode"] if given.typed("sample_break_mode") else usual
    blocks = blocks_of(mode, refusals)
    if mode == "complete_doc":
        notes.append(
            "--sample-break-mode complete_doc: a document, up to an empty line, is one example "
            "here, and a long one is cut at any token"
        )
    section = (
        masking(given.values, _has_pieces(given)) if name == MASKED_LM else {"name": DENOISING}
    )
    section |= {"blocks": blocks, **_block_tokens(given)}
    return section | ({} if name == MASKED_LM else {"noise": _noise(given, refusals, notes)})


def _has_pieces(given: Given) -> bool:
    """Return whether tokens are pieces of words; without, each token is one."""
    return any(given[name] for name in ("bpe", "bpe_codes", "sentencepiece_model"))


def _lengths(given: Given) -> dict[str, int]:
    typed = given.typed("tokens_per_sample")
    length = given["tokens_per_sample"] if typed else _USUAL[given["task"]][1]
    return {"tokens_per_sample": length}


def _block_tokens(given: Given) -> dict[str, Any]:
    return {"block_tokens": _lengths(given)["tokens_per_sample"], "random_start": False}


def _noise(given: Given, refusals: Refusals, notes: list[str]) -> dict[str, Any]:
    """Return the noise of BART."""
    section: dict[str, Any] = {
        "name": "bart",
        "permute_sentences": max(0.0, float(given["permute_sentences"])),
        "rotate": given["rotate"],
        "random": given["mask_random"],
        "whole_words": given["mask_length"] != _TOKENS and _has_pieces(given),
        "infill": 0.0,
        **_masked(given, refusals),
    }
    if section["permute_sentences"] > 0.0:
        notes.append(
            "--permute-sentences: lines end sentences here, as do the symbols of "
            "task.noise.sentence_ends; fairseq knows the full stop of GPT-2's pieces only"
        )
    if not any(section[key] for key in ("permute_sentences", "rotate", "infill")) and not (
        section.get("mask") or section.get("delete")
    ):
        refusals.add("--mask, --rotate, --permute-sentences: all are 0; raise one")
    return section


def _masked(given: Given, refusals: Refusals) -> dict[str, float]:
    """Return what is done with the share `--mask` of the words."""
    share, length, by = given["mask"], given["mask_length"], given["replace_length"]
    if length not in (_SPANS, _WORDS, _TOKENS):
        refusals.add(f"--mask-length {length}: there are {_TOKENS}, {_WORDS} and {_SPANS}")
    if not share:
        return {}
    if length == _SPANS:
        if by != 1:
            refusals.add(
                f"--replace-length {by}: a span becomes one <mask> here; use --replace-length 1"
            )
        return {"infill": share, "span_mean": given["poisson_lambda"]}
    if by == 0:
        return {"delete": share}
    if length == _WORDS and by == 1 and _has_pieces(given):
        refusals.add(
            f"--mask-length {_WORDS} --replace-length 1: each token of a word becomes a <mask> "
            f"here; use --replace-length {_EACH}, or --mask-length {_SPANS}"
        )
    return {"mask": share}


def is_noisy(given: Given) -> bool:
    """Return whether the command learns from noisy text."""
    return given["task"] in NOISY


def noisy_criterion(given: Given, refusals: Refusals) -> dict[str, Any] | None:
    """Return the section `criterion` of `masked_lm`; None for another task."""
    name = given["criterion"]
    if (name == MASKED_LM) != (given["task"] == MASKED_LM):
        refusals.add(
            f"--criterion {name}: {MASKED_LM} goes with --task {MASKED_LM}; set both, or none"
        )
    if given["task"] != MASKED_LM:
        return None
    return {"name": "cross_entropy", "label_smoothing": BY_DEST["label_smoothing"].default}
