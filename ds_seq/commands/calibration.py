"""Texts on which a trained model is measured and scored before and after a part is cut out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ds_seq.data.progress import Progress
from ds_seq.errors import UserError
from ds_seq.generation.translate import translate
from ds_seq.runs.card import LoadedRun, ModelCard, StoredRun
from ds_seq.runs.data import open_for_model, pairs_as_trained
from ds_seq.runs.decoding import run_decoding
from ds_seq.scores.scoring import CorpusScore, Scorer
from ds_seq.surgery.prune import Ids
from ds_seq.surgery.student import Sample, spread_sample
from ds_seq.tasks.translation import read_raw
from ds_seq.text.lines import check_counts, read_lines, read_parallel, warn_of_lines
from ds_seq.text.normalize import has_text
from ds_seq.text.tags import untagged, untagged_message


class ScoredText(NamedTuple):
    """A text to translate and its reference."""

    source: list[str]
    reference: list[str]


class Texts(NamedTuple):
    """The texts that a command reads."""

    calibration: list[str]
    calibration_target: list[str] | None
    scored: ScoredText


def read_texts(options: argparse.Namespace, card: ModelCard) -> Texts:
    """Read what `--calibration`, `--calibration-target`, `--input` and `--reference` name.

    Raises:
        UserError: a file is missing, has no text, or does not belong to another one.
    """
    calibration = read_lines(options.calibration)
    if not any(map(has_text, calibration)):
        raise UserError(f"{options.calibration}: has no text to calibrate on")
    target = None
    if options.calibration_target is not None:
        target = read_lines(options.calibration_target)
        check_counts(calibration, options.calibration, target, options.calibration_target)
    scored = read_scored(options)
    if scored is None:
        if not card.test:
            raise UserError("data.raw.test: is empty; give --input FILE and --reference FILE")
        text = read_raw("test", card.test)
        scored = _not_empty(ScoredText(text.source, text.target))
    return Texts(calibration, target, scored)


def read_scored(options: argparse.Namespace) -> ScoredText | None:
    """Read what `--input` and `--reference` name; None if they are not given.

    Raises:
        UserError: only one is given, a file is missing, or they do not belong together.
    """
    if (options.input is None) != (options.reference is None):
        raise UserError("--input, --reference: belong together; give both or neither")
    if options.input is None:
        return None
    return _not_empty(ScoredText(*read_parallel(options.input, options.reference)))


def _not_empty(text: ScoredText) -> ScoredText:
    if not text.reference:
        raise UserError("there is nothing to translate and score: the text is empty")
    return text


def check_has_experts(stored: StoredRun | LoadedRun, name: Path, option: str) -> None:
    """Refuse a dense model where an option merges experts.

    Raises:
        UserError: it has no experts.
    """
    if stored.model_config.moe is None:
        raise UserError(f"{name}: is a dense model without experts to merge; leave out {option}")


def measured_pairs(options: argparse.Namespace, stored: StoredRun | LoadedRun) -> Sample:
    """Return the pairs that `--data`, `--split` and `--max-tokens-measured` name.

    Raises:
        UserError: the shards are missing or damaged, or belong to another model.
    """
    reader = open_for_model(options.data, options.split, options.run, stored)
    pairs = pairs_as_trained(reader, options.split, stored)
    return spread_sample(pairs, options.max_tokens_measured)


def encoded_pairs(run: LoadedRun, texts: Texts, device: torch.device) -> list[Ids]:
    """Encode the calibration text, leaving out empty lines."""
    target = texts.calibration_target
    if target is None:
        target = translations(run, texts.calibration, device, "translate the calibration text")
    sources = run.tokenizers.source.encode_lines(texts.calibration)
    tags = run.card.source_tags
    warn_of_lines(untagged_message(tags), [n + 1 for n in untagged(texts.calibration, tags)])
    targets = run.tokenizers.target.encode_lines(target)
    return [(source, output) for source, output in zip(sources, targets, strict=True) if source]


def translations(
    run: LoadedRun, lines: Sequence[str], device: torch.device, label: str
) -> list[str]:
    """Translate lines; `label` is that of the progress."""
    _, search, limits = run_decoding([run], run.card.generation)
    with Progress(label, len(lines), "sentences") as progress:
        translation = translate(
            run.seq2seq, run.tokenizers, lines, search, limits, device, progress=progress
        )
    assert translation is not None, "one process has all lines"
    return translation.lines


def bleu(
    run: LoadedRun, text: ScoredText, scorer: Scorer, device: torch.device, label: str
) -> CorpusScore:
    """Return the BLEU score of the model on a text."""
    return scorer(translations(run, text.source, device, label), text.reference)[0]
