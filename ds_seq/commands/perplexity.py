"""`ds-seq perplexity`: how well a language model predicts text."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ds_seq import distributed
from ds_seq.commands.arguments.perplexity import build_parser
from ds_seq.commands.options import chosen_device
from ds_seq.config.task import LanguageModelingConfig
from ds_seq.data.corpora import Part
from ds_seq.data.lines_source import LinesSource
from ds_seq.data.text import TextDataset
from ds_seq.errors import UserError
from ds_seq.generation.build import build_limits
from ds_seq.generation.perplexity import figures_of, likelihoods, text_sizes
from ds_seq.generation.translate import ALONE
from ds_seq.names import LM_METRICS
from ds_seq.runs.card import LoadedRun
from ds_seq.runs.open import load_packed
from ds_seq.text.lines import read_lines


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq perplexity`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    device = chosen_device(args, distributed.discover(os.environ))
    run = load_packed(args.run, args.checkpoint, args.dtype, device)
    if not run.card.reads_prompts:
        raise UserError(f"{args.run}: is no language model; it translates")
    most, context = _block(args, run)
    dataset = _dataset(args.input, run, most, context)
    found = _measure(args, run, dataset, device)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"{found['tokens']:,} tokens in blocks of {most:,}, {context:,} of them context")
    print(f"nll per token {found['nll']:.4f} ({found['bits']:.4f} bits)")
    for name in LM_METRICS:
        print(f"{name.replace('_', ' ')} {found[name]:.2f}")
    return 0


def _block(args: argparse.Namespace, run: LoadedRun) -> tuple[int, int]:
    """Return the number of tokens of a block, and how many of them are context."""
    longest = run.card.max_positions
    task = None if run.experiment is None else run.experiment.task
    usual = task.block_tokens if isinstance(task, LanguageModelingConfig) else longest
    most = args.block_tokens or min(usual, longest)
    if most > longest:
        raise UserError(f"--block-tokens {most}: the model takes {longest:,} tokens; lower it")
    if args.stride is not None and args.stride > most:
        raise UserError(f"--stride {args.stride}: is more than the {most:,} tokens of a block")
    context = most - args.stride if args.stride else args.context_window or 0
    if context >= most:
        raise UserError(
            f"--context-window {context}: leaves no token of a block of {most:,} to score; lower it"
        )
    return most, context


def _dataset(names: Sequence[str], run: LoadedRun, most: int, context: int) -> TextDataset:
    """Read text; each file is a text of its own."""
    lines: list[str] = []
    parts: list[Part] = []
    tokenizer = run.tokenizers.target
    for name in names:
        text = [tokenizer.normalize(line) for line in read_lines(name)]
        rows = range(len(lines), len(lines) + len(text))
        parts.append(Part(Path(name).as_posix(), rows, (run.card.source_lang,) * 2))
        lines += text
    source = LinesSource(tokenizer, lines)
    empty = len(tokenizer.symbols.framed([]))
    return TextDataset(source, parts, "tokens", most - context, False, context, empty)


def _measure(
    args: argparse.Namespace, run: LoadedRun, dataset: TextDataset, device: torch.device
) -> dict[str, Any]:
    tokenizer = run.tokenizers.target
    limits = build_limits(run.card.generation, run.card.max_positions)
    if args.max_tokens is not None:
        limits = replace(limits, max_tokens=args.max_tokens)
    found = likelihoods(run.model, dataset, tokenizer, limits, device, ALONE)
    sizes = text_sizes(dataset, tokenizer, with_empty_lines=True)
    tokens = sum(each.tokens for each in found.values())
    nll = sum(each.nll for each in found.values()) / tokens
    figures: dict[str, Any] = {"tokens": tokens, "nll": nll, "bits": nll / math.log(2)}
    for name in LM_METRICS:
        figures[name], each = figures_of(found, sizes, name)
        if len(each) > 1:
            figures[f"{name}_by_file"] = each
    return figures
