"""Options for processing the hypotheses of a search before they are written."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from ds_seq.commands.arguments.generate import MBR_SAMPLES
from ds_seq.config.generation import GenerationConfig
from ds_seq.errors import UserError
from ds_seq.generation.alignment import Aligner
from ds_seq.generation.build import check_n_best
from ds_seq.generation.mbr import MinimumRisk, build_utility
from ds_seq.generation.output import Spelling
from ds_seq.generation.pipeline import ResultStep
from ds_seq.generation.translate import BatchLimits
from ds_seq.runs.card import LoadedRun
from ds_seq.search.hypotheses import Hypothesis


def check_result_arguments(args: argparse.Namespace) -> None:
    """Refuse options that cannot be combined."""
    aligns = args.align or args.replace_unk
    if args.align and args.format == "text":
        raise UserError("--align: --format text cannot show it; use tsv, jsonl or fairseq")
    if args.align_layer is not None:
        if not aligns:
            raise UserError(
                "--align-layer: only affects --align and --replace-unk; add one of them"
            )
        if args.align_layer < 1:
            raise UserError(f"--align-layer {args.align_layer}: layers are counted from 1")
    if aligns and args.expert_parallel > 1:
        raise UserError(
            f"--expert-parallel {args.expert_parallel}: alignments need all experts on each "
            "process; leave out this option, or --align and --replace-unk"
        )
    if args.mbr is None:
        if args.samples_per_line is not None:
            raise UserError("--samples-per-line: only affects --mbr; add --mbr")
        return
    if args.samples_per_line is not None and args.samples_per_line < 2:
        raise UserError(f"--samples-per-line {args.samples_per_line}: at least 2 are needed")


def result_settings(args: argparse.Namespace) -> dict[str, bool]:
    """Return search settings that these options imply, by field: `--mbr` samples by default."""
    return {"sampling": True} if args.mbr is not None and args.sampling is None else {}


def num_hypotheses(args: argparse.Namespace, settings: GenerationConfig) -> int:
    """Return the number of hypotheses that the search must find to write `--n-best` of them."""
    check_n_best(args.n_best, settings)
    if settings.expert == "all" and args.format == "text" and args.mbr is None:
        raise UserError(
            "--expert all: --format text has one translation per line; add --format tsv, jsonl or "
            "fairseq, or --mbr to choose one"
        )
    if args.mbr is None:
        return int(args.n_best)
    if not settings.sampling:
        raise UserError("--mbr: chooses among samples; leave out --sampling or set it to true")
    samples = args.samples_per_line or MBR_SAMPLES
    if args.n_best > samples:
        raise UserError(f"--n-best {args.n_best}: raise --samples-per-line, which is {samples}")
    return int(samples)


def result_conditions(args: argparse.Namespace) -> dict[str, str | int]:
    """Return those of these options on which the output depends."""
    return {
        "align": int(args.align),
        "align-layer": args.align_layer or 0,
        "replace-unk": int(args.replace_unk),
        "mbr": args.mbr or "",
        "samples-per-line": args.samples_per_line or MBR_SAMPLES,
    }


def build_steps(
    args: argparse.Namespace,
    runs: Sequence[LoadedRun],
    limits: BatchLimits,
    device: torch.device,
    spelling: Spelling,
) -> tuple[ResultStep, ...]:
    """Build the processing steps that the options select, in their order.

    Args:
        args: the options.
        runs: the models.
        limits: size of batches and of sentences.
        device: device of the models.
        spelling: turns ids into the text that `--mbr` compares.

    Raises:
        UserError: there is no such layer, or a language needs a package that is not installed.
    """
    steps: list[ResultStep] = []
    first = runs[0]
    if args.mbr is not None:
        utility = build_utility(args.mbr, first.card.target_lang)

        def text(hypothesis: Hypothesis) -> str:
            return spelling(hypothesis.tokens)

        steps.append(MinimumRisk(utility, text, args.n_best))
    if args.align or args.replace_unk:
        if first.card.experts:
            raise UserError(
                "--align, --replace-unk: words are not aligned for a mixture (criterion hard_em); "
                "leave them out"
            )
        layer = None if args.align_layer is None else args.align_layer - 1
        aligner = Aligner([run.seq2seq for run in runs], first.tokenizers, limits, device, layer)
        aligner.check()
        steps.append(aligner)
    return tuple(steps)
