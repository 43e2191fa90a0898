"""The command `ds-seq rescore`: score translations from any source with a model.

ds-seq rescore runs/x --source text.de --hypotheses text.en --output scores.tsv
ds-seq rescore runs/x --source text.de --hypotheses text.en --format jsonl --length-penalty 0
ds-seq rescore runs/x --source text.de --hypotheses n_best.tsv --hypotheses-format tsv
ds-seq rescore runs/x --source text.de --hypotheses n_best.tsv --hypotheses-format tsv \
    --channel runs/back --lm runs/lm --format text
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from itertools import groupby

from ds_seq import distributed
from ds_seq.commands.arguments.rescore import build_parser
from ds_seq.commands.channel import apply_channel, load_channel
from ds_seq.commands.options import chosen_device, load_chosen, search_settings
from ds_seq.errors import UserError
from ds_seq.generation.output import LineWriter
from ds_seq.generation.rescoring import PairScorer, Row, encode_rows
from ds_seq.runs.decoding import run_decoding
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.text.lines import (
    STANDARD,
    check_counts,
    check_writable,
    read_lines,
    warn_of_lines,
    write_lines,
)
from ds_seq.text.tags import untagged, untagged_message
from ds_seq.text.tokenizer import Tokenizer

"""Fields of the experiment's `generation` that affect a score, and the maximum batch size."""


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq rescore`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    with distributed.joined(args.hang_seconds) as world:
        with distributed.shared_errors():
            _check_arguments(args)
            device = chosen_device(args, world)
            source = read_lines(args.source)
            target = read_lines(args.hypotheses, tabs=args.hypotheses_format == "tsv")
            run = load_chosen(args.run, args, device)
            decoding = run_decoding([run], search_settings(run.card, args))
            rows = _rows(args, source, target, run.tokenizers.target)
            source = [run.tokenizers.source.normalize(line) for line in source]
            most = run.card.max_positions, run.card.longest_source
            encoded = encode_rows(run.tokenizers, source, rows, args.hypotheses, *most)
            score = PairScorer(run.seq2seq, decoding.search, decoding.limits, device)
            channel = load_channel(args, source, rows, device)
        started = time.monotonic()
        hypotheses = score(encoded, world.rank, world.size)
        if channel:
            ranked = apply_channel(channel, hypotheses, rows, args, world, run.card.target_lang)
            rows, hypotheses = (rows, None) if ranked is None else ranked
        if hypotheses is not None:
            writer = LineWriter(args.format, run.tokenizers, source)
            pairs = zip(rows, hypotheses, strict=True)
            by_line = groupby(pairs, key=lambda pair: pair[0].line)
            output = [writer(line, [scored for _, scored in group]) for line, group in by_line]
            write_lines(args.output, output)
            _report(hypotheses, encoded.cut, time.monotonic() - started)
            tags = run.card.source_tags
            warn_of_lines(untagged_message(tags), [n + 1 for n in untagged(source, tags)])
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    if args.expert_parallel != 1:
        raise UserError(
            f"--expert-parallel {args.expert_parallel}: rescoring keeps all experts on each "
            "process; leave the option out"
        )
    if args.source == args.hypotheses == STANDARD:
        raise UserError("--source - --hypotheses -: only one of them can be standard input")
    if STANDARD in (args.source, args.hypotheses) and distributed.world_size() > 1:
        raise UserError("-: several processes cannot share standard input; give a file")
    check_writable(args.output, (args.source, args.hypotheses, args.run))


def _rows(
    args: argparse.Namespace,
    source: Sequence[str],
    target: Sequence[str],
    tokenizer: Tokenizer,
) -> list[Row]:
    """Read the translations, grouped by source line.

    Raises:
        UserError: the translations do not fit the source.
    """
    if args.hypotheses_format == "text":
        check_counts(source, args.source, target, args.hypotheses)
        return [Row(n, tokenizer.normalize(text), n + 1) for n, text in enumerate(target)]
    rows: list[Row] = []
    for where, row in enumerate(target, 1):
        number, *others = row.split("\t")
        if len(others) < 2 or not number.isdecimal() or not 1 <= int(number) <= len(source):
            raise UserError(
                f"{args.hypotheses}: line {where}: must be a line number from 1 to "
                f"{len(source):,}, any text, and a translation, separated by tabs"
            )
        if rows and rows[-1].line > int(number) - 1:
            raise UserError(
                f"{args.hypotheses}: line {where}: line {number} of the source comes after line "
                f"{rows[-1].line + 1}; sort by line numbers"
            )
        rows.append(Row(int(number) - 1, tokenizer.normalize(others[1]), where))
    return rows


def _report(hypotheses: Sequence[Hypothesis], cut: Sequence[int], seconds: float) -> None:
    """Print to stderr the figures of the whole text, and a warning about truncated lines."""
    total = math.fsum(score for item in hypotheses for score in item.token_scores)
    tokens = sum(len(item.token_scores) for item in hypotheses)
    perplexity = f"{_exp(-total / tokens):.3f}" if tokens else "none"
    print(
        f"scored {len(hypotheses):,} translations in {seconds:.1f} s: {tokens:,} pieces including "
        f"the ends, log-probability {total:.3f}, perplexity {perplexity}",
        file=sys.stderr,
    )
    warn_of_lines("source line(s) longer than the model can take were cut", cut)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
