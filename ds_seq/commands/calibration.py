"""Texts on which a trained model is measured and scored before and after a part is cut out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ds_seq import distributed
from ds_seq.commands.arguments.calibration import MEASURED_TOKENS
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.data.progress import Progress
from ds_seq.errors import UserError
from ds_seq.generation.translate import translate
from ds_seq.names import Precision
from ds_seq.runs.card import LoadedRun, ModelCard, StoredRun
from ds_seq.runs.data import open_for_model, pairs_as_trained
from ds_seq.runs.decoding import run_decoding
from ds_seq.runs.export import write_export
from ds_seq.runs.open import DTYPES
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


class TextFiles(NamedTuple):
    """Files of text for `prune_experts` and `prune_heads`."""

    calibration: str
    """Raw text of the sources on which parts are measured."""
    calibration_target: str | None = None
    """Its translation; None: the model's own translation."""
    input: str | None = None
    """Raw text to score on, with `reference`; None: `data.raw.test`."""
    reference: str | None = None
    """Its reference."""


class MeasuredPairs(NamedTuple):
    """Pairs on which the use of experts is measured before they are merged."""

    data: Path
    """Folder of shards made with the model's vocabulary."""
    split: str = "train"
    """Split of the shards."""
    num_tokens: int = MEASURED_TOKENS
    """Number of target tokens, approximately, evenly spread."""


class Texts(NamedTuple):
    """The texts that a command reads."""

    calibration: list[str]
    calibration_target: list[str] | None
    scored: ScoredText


def read_texts(options: TextFiles, card: ModelCard) -> Texts:
    """Read the files of texts.

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
    scored = read_scored(options.input, options.reference)
    if scored is None:
        if not card.test:
            raise UserError("data.raw.test: is empty; give --input FILE and --reference FILE")
        text = read_raw("test", card.test)
        scored = _not_empty(ScoredText(text.source, text.target))
    return Texts(calibration, target, scored)


def read_scored(input: str | None, reference: str | None) -> ScoredText | None:
    """Read what `--input` and `--reference` name; None if they are not given.

    Raises:
        UserError: only one is given, a file is missing, or they do not belong together.
    """
    if (input is None) != (reference is None):
        raise UserError("--input, --reference: belong together; give both or neither")
    if input is None or reference is None:
        return None
    return _not_empty(ScoredText(*read_parallel(input, reference)))


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


def measured_pairs(measured: MeasuredPairs, run: Path, stored: StoredRun | LoadedRun) -> Sample:
    """Return the pairs on which a model is measured.

    Args:
        measured: where they are.
        run: what the user calls the model.
        stored: the model.

    Raises:
        UserError: the shards are missing or damaged, or belong to another model.
    """
    reader = open_for_model(measured.data, measured.split, run, stored)
    pairs = pairs_as_trained(reader, measured.split, stored)
    return spread_sample(pairs, measured.num_tokens)


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


@dataclass(frozen=True)
class Pruned:
    """A smaller model that was written.

    Attributes:
        path: its weights file.
        num_parameters: number of parameters before and after.
        before: BLEU of the whole model.
        after: BLEU of the smaller one.
    """

    path: Path
    num_parameters: tuple[int, int]
    before: CorpusScore
    after: CorpusScore


class Smaller(NamedTuple):
    """A model that lacks some parts of another."""

    model: nn.Module
    config: ExperimentConfig
    parts: str
    """What it lacks some of, such as `experts`."""


def write_pruned(
    run: LoadedRun,
    smaller: Smaller,
    text: ScoredText,
    scorer: Scorer,
    out: Path,
    dtype: Precision,
) -> Pruned:
    """Translate a text with a model and with a smaller one, and write the smaller one.

    Args:
        run: the whole model.
        smaller: the smaller model, on a CPU.
        text: what is translated.
        scorer: what scores the translations.
        out: new file or folder.
        dtype: number format of the weights.
    """
    device = distributed.World().device
    model, config = smaller.model, smaller.config
    before = bleu(run, text, scorer, device, f"translate, all {smaller.parts}")
    model.to(device)
    pruned = LoadedRun(run.card, config.model, model, out, config)
    after = bleu(pruned, text, scorer, device, "translate, pruned")
    model.to("cpu", DTYPES[dtype])
    path = write_export(model, config, run.tokenizers, out)
    old, new = (sum(p.numel() for p in each.parameters()) for each in (run.model, model))
    return Pruned(path, (old, new), before, after)


def pruned_lines(done: Pruned) -> list[str]:
    """Return what has become of size and score, a line each."""
    old, new = done.num_parameters
    scores = (("before", done.before), ("after", done.after))
    return [
        f"parameters  {old:,} -> {new:,} ({100 * (new - old) / old:+.1f}%)",
        *(f"{label:10}  {score}" for label, score in scores),
        f"{done.path}: {done.path.stat().st_size / 1e6:,.1f} MB",
    ]
