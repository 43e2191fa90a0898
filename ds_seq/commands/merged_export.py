"""`ds-seq export --merge-experts`: a dense model for programs that have no experts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ds_seq import distributed
from ds_seq.commands.arguments.shared import chosen_layers
from ds_seq.commands.calibration import (
    MeasuredPairs,
    ScoredText,
    bleu,
    check_has_experts,
    measured_pairs,
    read_scored,
)
from ds_seq.errors import UserError
from ds_seq.runs.card import LoadedRun
from ds_seq.runs.export import FolderExport, check_new
from ds_seq.runs.open import load_run, open_run
from ds_seq.scores.scoring import CorpusScore, Scorer
from ds_seq.surgery.shrink import student_config
from ds_seq.surgery.student import all_layers, dense_of

_OPTION = "--merge-experts"
_FORMATS = ("ctranslate2", "hf")


def merged_export(options: argparse.Namespace) -> Path:
    """Merge the experts of each layer into one feed-forward, and write the dense model.

    With a text to score on, prints BLEU before and after the merge.

    Returns:
        Path of the weights file.

    Raises:
        UserError: the options do not go together, the model has no experts or cannot be merged, or
            the other program has no such dense model.
    """
    _check(options)
    check_new(options.out)
    text = read_scored(options.input, options.reference)
    stored = open_run(options.run, options.checkpoint)
    experiment = stored.require_experiment()
    check_has_experts(stored, options.run, _OPTION)
    config = student_config(experiment, all_layers(experiment.model), dense=True)
    folder = FolderExport(options.run, stored, config, options.format, options.out)
    sample = None
    if options.data is not None:
        measured = MeasuredPairs(options.data, options.split, options.max_tokens_measured)
        sample = measured_pairs(measured, options.run, stored)
    scorer = None if text is None else Scorer(stored.card.target_lang)
    distributed.keep_freed_memory()
    device = distributed.World().device
    run = load_run(options.run, options.checkpoint, device, torch.float32)
    dense = dense_of(run, config, sample, device)
    scores: list[CorpusScore] = []
    if text is not None and scorer is not None:
        dense.model.to(device)
        merged = LoadedRun(run.card, config.model, dense.model, options.out, config)
        scores = _scores(run, merged, text, scorer, device)
        dense.model.to("cpu")
    path = folder.write(dense.model, options.dtype, _changes(options, scores))
    print("\n".join(_report(dense.shares, scores)))
    return path


def _check(options: argparse.Namespace) -> None:
    if options.format not in _FORMATS:
        raise UserError(
            f"{_OPTION}: goes with --format {' or '.join(_FORMATS)}; for ds-seq, ds-seq "
            "make-student --dense makes the dense model"
        )
    if options.only or options.merge_lora or chosen_layers(options):
        raise UserError(
            f"{_OPTION}: writes the whole model; leave out --only, --merge-lora and the layers to "
            "keep, or export with them first, and then the export"
        )


def _scores(
    run: LoadedRun, merged: LoadedRun, text: ScoredText, scorer: Scorer, device: torch.device
) -> list[CorpusScore]:
    """Return BLEU before and after the merge."""
    return [
        bleu(run, text, scorer, device, "translate, with experts"),
        bleu(merged, text, scorer, device, "translate, merged"),
    ]


def _changes(options: argparse.Namespace, scores: Sequence[CorpusScore]) -> list[str]:
    """Return what the model card says about the merge."""
    weighted = "with equal weights"
    if options.data is not None:
        weighted = f"weighted by use on `{options.data.name}` ({options.split})"
    lines = [f"the experts of each layer were merged into one feed-forward, {weighted}"]
    if scores:
        before, after = scores
        lines.append(
            f"BLEU on `{Path(options.input).name}`: {before.value:.2f} with experts, "
            f"{after.value:.2f} merged (`{after.signature}`)"
        )
    return lines


def _report(shares: Mapping[str, Sequence[float]], scores: Sequence[CorpusScore]) -> list[str]:
    """Return lines with the share of each expert in its layer, and with the scores."""
    lines = [
        f"{name}  {' '.join(f'{share:.1%}' for share in values)}" for name, values in shares.items()
    ]
    pairs = zip(("before", "after"), scores, strict=False)  # no scores without a text
    return lines + [f"{label:10}  {score}" for label, score in pairs]
