"""`ds-seq prune-experts`: drop the least important experts for a language or a domain."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ds_seq import distributed
from ds_seq.commands.arguments.prune_experts import build_parser
from ds_seq.data.progress import Progress
from ds_seq.errors import UserError
from ds_seq.generation.translate import translate
from ds_seq.runs.card import LoadedRun, ModelCard
from ds_seq.runs.decoding import run_decoding
from ds_seq.runs.export import check_new, write_export
from ds_seq.runs.open import DTYPES, load_run
from ds_seq.scores.scoring import CorpusScore, Scorer
from ds_seq.surgery.prune import Ids, best_experts, importance, parse_keep, prune
from ds_seq.tasks.translation import read_raw
from ds_seq.text.lines import check_counts, read_lines, read_parallel, warn_of_lines
from ds_seq.text.normalize import has_text
from ds_seq.text.tags import untagged, untagged_message


class _Texts(NamedTuple):
    """The texts that the command reads."""

    calibration: list[str]
    calibration_target: list[str] | None
    source: list[str]
    reference: list[str]


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq prune-experts`; return the exit code."""
    options = build_parser().parse_intermixed_args(argv)
    check_new(options.out)
    distributed.keep_freed_memory()
    device = distributed.World().device
    run = load_run(options.run, options.checkpoint, device, torch.float32)
    experiment = run.require_experiment()
    keep = parse_keep(options.keep, run.model, experiment)
    texts = _read(options, run.card)
    scorer = Scorer(run.card.target_lang)
    pairs = _pairs(run, texts, device)
    limits = run_decoding([run], run.card.generation).limits
    expert_importance = importance(run.model, pairs, run.tokenizers.symbols, limits, device)
    kept = best_experts(expert_importance, keep)
    smaller, config = prune(run.model, experiment, run.tokenizers.sizes, kept)
    before = _score(run, texts, scorer, device, "translate, all experts")
    smaller.to(device)
    pruned = LoadedRun(run.card, config.model, smaller, options.out, config)
    after = _score(pruned, texts, scorer, device, "translate, pruned")
    smaller.to("cpu", DTYPES[options.dtype])
    path = write_export(smaller, config, run.tokenizers, options.out)
    print("\n".join(_report(expert_importance, kept)))
    old, new = (sum(p.numel() for p in model.parameters()) for model in (run.model, smaller))
    print(f"parameters  {old:,} -> {new:,} ({100 * (new - old) / old:+.1f}%)")
    for score, label in ((before, "before"), (after, "after")):
        print(f"{label:10}  {score}")
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
    return 0


def _read(options: argparse.Namespace, card: ModelCard) -> _Texts:
    calibration = read_lines(options.calibration)
    if not any(map(has_text, calibration)):
        raise UserError(f"{options.calibration}: has no text to calibrate on")
    target = None
    if options.calibration_target is not None:
        target = read_lines(options.calibration_target)
        check_counts(calibration, options.calibration, target, options.calibration_target)
    if (options.input is None) != (options.reference is None):
        raise UserError("--input, --reference: belong together; give both or neither")
    if options.input is not None:
        source, reference = read_parallel(options.input, options.reference)
    elif card.test:
        text = read_raw("test", card.test)
        source, reference = text.source, text.target
    else:
        raise UserError("data.raw.test: is empty; give --input FILE and --reference FILE")
    if not reference:
        raise UserError("there is nothing to translate and score: the text is empty")
    return _Texts(calibration, target, source, reference)


def _pairs(run: LoadedRun, texts: _Texts, device: torch.device) -> list[Ids]:
    """Encode the calibration text, leaving out empty lines."""
    target = texts.calibration_target
    if target is None:
        target = _translations(run, texts.calibration, device, "translate the calibration text")
    sources = run.tokenizers.source.encode_lines(texts.calibration)
    tags = run.card.source_tags
    warn_of_lines(untagged_message(tags), [n + 1 for n in untagged(texts.calibration, tags)])
    targets = run.tokenizers.target.encode_lines(target)
    return [(source, output) for source, output in zip(sources, targets, strict=True) if source]


def _translations(
    run: LoadedRun, lines: Sequence[str], device: torch.device, label: str
) -> list[str]:
    _, search, limits = run_decoding([run], run.card.generation)
    with Progress(label, len(lines), "sentences") as progress:
        translation = translate(
            run.seq2seq, run.tokenizers, lines, search, limits, device, progress=progress
        )
    assert translation is not None, "one process has all lines"
    return translation.lines


def _score(
    run: LoadedRun, texts: _Texts, scorer: Scorer, device: torch.device, label: str
) -> CorpusScore:
    """Return the BLEU score of the model on the test text."""
    return scorer(_translations(run, texts.source, device, label), texts.reference)[0]


def _report(importance: Mapping[str, Tensor], kept: Mapping[str, list[int]]) -> Iterator[str]:
    """Yield a line per layer with its experts and their importance, most important first."""
    for name, values in importance.items():
        order = values.argsort(descending=True, stable=True).tolist()
        texts = {expert: f"{expert} ({values[expert]:.3g})" for expert in order}
        keeps = " ".join(texts[expert] for expert in order if expert in kept[name])
        drops = " ".join(texts[expert] for expert in order if expert not in kept[name])
        yield f"{name}  keeps {keeps}  drops {drops or 'none'}"
