"""The command ``ds-seq rescore``: the scores that a model gives to translations from anywhere.

ds-seq rescore runs/x --source text.de --hypotheses text.en --output scores.tsv
ds-seq rescore runs/x --source text.de --hypotheses text.en --format jsonl --length-penalty 0
ds-seq rescore runs/x --source text.de --hypotheses n_best.tsv --hypotheses-format tsv
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, cast

import numpy as np
import torch

from ds_seq import distributed
from ds_seq.commands.options import (
    add_model_arguments,
    add_search_arguments,
    load_model,
    parse_device,
    search_settings,
)
from ds_seq.errors import UserError
from ds_seq.generation.forced import Pair, Scorable, score_pairs
from ds_seq.generation.output import LineWriter, OutputFormat
from ds_seq.generation.translate import BatchLimits, cut_batches
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.tasks import build_limits, build_search
from ds_seq.text.lines import (
    STANDARD,
    check_counts,
    check_writable,
    read_lines,
    warn_of_lines,
    write_lines,
)
from ds_seq.text.tokenizer import Tokenizer, Tokenizers

_FORMATS: tuple[OutputFormat, ...] = ("tsv", "jsonl")
_OPTIONS = (
    "length_penalty",
    "length_penalty_form",
    "unk_penalty",
    "temperature",
    "max_tokens",
    "max_sentences",
)
"""Fields of the experiment's `generation` that a score depends on, and the size of a batch."""
_NO_TEXT = Hypothesis([], 0.0, [])


@dataclass(frozen=True)
class _Scorer:
    """How pairs are scored."""

    model: Scorable
    search: BeamSearch
    limits: BatchLimits
    device: torch.device


class _Row(NamedTuple):
    """A translation that is to be scored."""

    line: int
    """Of the source, from 0."""
    text: str
    """Normalized."""
    where: int
    """Line of the file that it stands in, from 1."""


class _Work(NamedTuple):
    """What is scored."""

    pairs: dict[int, Pair]
    """By row, from 0; those without any text are missing."""
    cut: list[int]
    """Lines, from 1, of which the model takes only the beginning of the source."""


def main(argv: Sequence[str]) -> int:
    """The command ``ds-seq rescore``; returns the exit code."""
    args = _parser().parse_args(argv)
    with distributed.joined() as world:
        with distributed.shared_errors():
            _check_arguments(args)
            device = world.device if args.device is None else parse_device(args.device)
            source = read_lines(args.source)
            target = read_lines(args.hypotheses)
            run = load_model(args.run, args.checkpoint, args.dtype, device)
            settings = search_settings(run.config, args)
            max_positions = run.config.model.max_positions
            rows = _rows(args, source, target, run.tokenizers.target)
            source = [run.tokenizers.source.normalize(line) for line in source]
            work = _encode(run.tokenizers, source, rows, args.hypotheses, max_positions)
            scorer = _Scorer(
                cast(Scorable, run.model),
                build_search(settings, run.tokenizers.symbols, max_positions),
                build_limits(settings, max_positions),
                device,
            )
        started = time.monotonic()
        scored = _score(scorer, work.pairs, world.rank, world.size)
        if scored is not None:
            found = [scored.get(number, _NO_TEXT) for number in range(len(rows))]
            writer = LineWriter(args.format, run.tokenizers, source)
            by_line = groupby(zip(rows, found, strict=True), key=lambda pair: pair[0].line)
            output = [writer(line, [one for _, one in group]) for line, group in by_line]
            write_lines(args.output, output)
            _report(found, work.cut, time.monotonic() - started)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ds-seq rescore",
        description="Score given translations with a model, as its beam search would: "
        "log-probability divided by the length penalty, and the log-probability of each piece. "
        "The text is scored in the pieces that the vocabulary splits it into.",
        allow_abbrev=False,
    )
    add_model_arguments(parser)
    add = parser.add_argument
    add("--source", required=True, help="text, one sentence a line; - = standard input")
    add("--hypotheses", required=True, metavar="FILE",
        help="its translations; - = standard input")  # fmt: skip
    add("--hypotheses-format", choices=("text", "tsv"), default="text",
        help="text: one line for each line of the source; tsv: any number, as `ds-seq generate "
        "--format tsv` writes them: line number, anything, translation "
        "(default: %(default)s)")  # fmt: skip
    add("--output", default=STANDARD, help="file for the scores (default: standard output)")
    add("--format", choices=_FORMATS, default="tsv",
        help="tsv: line number, score, translation; jsonl: one object a line, with a score for "
        "each piece and for the end (default: %(default)s)")  # fmt: skip
    add_search_arguments(parser, _OPTIONS)
    return parser


def _check_arguments(args: argparse.Namespace) -> None:
    if args.expert_parallel != 1:
        raise UserError(
            f"--expert-parallel {args.expert_parallel}: rescoring keeps all experts on each "
            "process; leave the option out"
        )
    if args.source == args.hypotheses == STANDARD:
        raise UserError("--source - --hypotheses -: standard input can be one of them only")
    if STANDARD in (args.source, args.hypotheses) and distributed.world_size() > 1:
        raise UserError("-: several processes cannot share standard input; give a file")
    check_writable(args.output)


def _rows(
    args: argparse.Namespace,
    source: Sequence[str],
    target: Sequence[str],
    tokenizer: Tokenizer,
) -> list[_Row]:
    """The translations, those of a line of the source one after the other.

    Raises:
        UserError: they do not fit the source.
    """
    if args.hypotheses_format == "text":
        check_counts(source, args.source, target, args.hypotheses)
        return [_Row(n, tokenizer.normalize(text), n + 1) for n, text in enumerate(target)]
    rows: list[_Row] = []
    for where, row in enumerate(target, 1):
        number, *others = row.split("\t")
        if len(others) < 2 or not number.isdecimal() or not 1 <= int(number) <= len(source):
            raise UserError(
                f"{args.hypotheses}: line {where}: should be a line number from 1 to "
                f"{len(source):,}, anything, and a translation, with tabs between them"
            )
        if rows and rows[-1].line > int(number) - 1:
            raise UserError(
                f"{args.hypotheses}: line {where}: line {number} of the source comes after line "
                f"{rows[-1].line + 1}; sort by line numbers"
            )
        rows.append(_Row(int(number) - 1, tokenizer.normalize(others[1]), where))
    return rows


def _encode(
    tokenizers: Tokenizers,
    source: Sequence[str],
    rows: Sequence[_Row],
    name: str,
    max_positions: int,
) -> _Work:
    """Ids of both sides, the source cut as ``ds-seq generate`` cuts it.

    Raises:
        UserError: a translation is longer than the model can take: part of it has no score.
    """
    work = _Work({}, [])
    end = tokenizers.source.symbols.eos
    sources = tokenizers.source.encode_lines(source)
    targets = tokenizers.target.encode_lines([row.text for row in rows])
    for number, (row, own) in enumerate(zip(rows, targets, strict=True)):
        ids = sources[row.line]
        if len(own) >= max_positions:
            raise UserError(
                f"{name}: line {row.where}: has {len(own):,} pieces; the model takes "
                f"{max_positions - 1:,}; shorten or remove it"
            )
        if ids or own:
            work.pairs[number] = Pair([*ids[: max_positions - 1], end], own)
    work.cut.extend(n for n, ids in enumerate(sources, 1) if len(ids) >= max_positions)
    return work


def _score(
    scorer: _Scorer, pairs: dict[int, Pair], rank: int, world_size: int
) -> dict[int, Hypothesis] | None:
    """Score this process's share of the pairs; returns all of them on rank 0, None on others."""
    rows = np.array(list(pairs), np.int64)
    lengths = [max(len(pair.source), len(pair.target) + 1) for pair in pairs.values()]
    done: dict[int, Hypothesis] = {}
    # whole batches are dealt out, so that the last digit of a score depends on no number of ranks
    for batch in cut_batches(np.array(lengths, np.int64), scorer.limits)[rank::world_size]:
        numbers = rows[batch].tolist()
        found = score_pairs(
            scorer.model, scorer.search, [pairs[row] for row in numbers], scorer.device
        )
        done.update(zip(numbers, found, strict=True))
    shares = distributed.gather_objects(done)
    if shares is None:
        return None
    return {row: one for share in shares for row, one in share.items()}


def _report(found: Sequence[Hypothesis], cut: Sequence[int], seconds: float) -> None:
    """Say on stderr what the whole text has, and what was not read as a whole."""
    total = math.fsum(score for one in found for score in one.token_scores)
    tokens = sum(len(one.token_scores) for one in found)
    perplexity = f"{_exp(-total / tokens):.3f}" if tokens else "none"
    print(
        f"scored {len(found):,} translations in {seconds:.1f} s: {tokens:,} pieces with the ends, "
        f"log-probability {total:.3f}, perplexity {perplexity}",
        file=sys.stderr,
    )
    warn_of_lines("source line(s) longer than the model can take were cut", cut)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
