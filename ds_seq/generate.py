"""Translate text with a trained model: ``ds-seq generate RUN``, or this file under a launcher.

ds-seq generate runs/x --input text.de --output text.en --reference reference.en
ds-seq generate model.safetensors --input text.de
ds-seq generate runs/x --input text.de --format jsonl --n-best 5
deepspeed --num_gpus 8 ds_seq/generate.py runs/x --input text.de
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # As a script, Python puts this folder first, where `data`, `config` or `models` would shadow
    # top-level modules of others. The repository belongs there.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch

from ds_seq import distributed
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.data.clean import normalise
from ds_seq.data.progress import Progress
from ds_seq.errors import UserError, run_command
from ds_seq.generation.beam_search import BeamSearch
from ds_seq.generation.output import FORMATS, LineWriter, OutputFormat, plain_text
from ds_seq.generation.scoring import Scorer
from ds_seq.generation.text import (
    STANDARD,
    check_counts,
    check_writable,
    read_lines,
    write_lines,
)
from ds_seq.generation.translate import (
    BatchLimits,
    Found,
    Share,
    gather_lines,
    search_lines,
)
from ds_seq.interop.command_line import (
    add_model_arguments,
    add_search_arguments,
    check_expert_parallel,
    check_n_best,
    parse_device,
    search_settings,
)
from ds_seq.interop.run_folder import DTYPES, LoadedRun, load_run
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.tasks import build_limits, build_search
from ds_seq.tasks.translation import RawSplit, format_samples, read_raw

_MOST_NAMED_LINES = 10


@dataclass(frozen=True)
class _Text:
    """What is to be translated, and what to compare with."""

    source: list[str]
    reference: list[str] | None


class _Line(NamedTuple):
    """What becomes of a line of the input."""

    best: str
    """The text of the best translation."""
    output: str
    """What is written, in the format that was asked for."""


def main(argv: Sequence[str]) -> int:
    """The command ``ds-seq generate``; returns the exit code."""
    args = _parser().parse_args(argv)
    with distributed.joined() as world:
        with distributed.shared_errors():
            _check_arguments(args, world.size)
            device = world.device if args.device is None else parse_device(args.device)
            text = None if args.input is None else _read_input(args.input, args.reference)
            dtype = None if args.dtype is None else DTYPES[args.dtype]
            run = load_run(args.run, args.checkpoint, device, dtype, args.expert_parallel)
            settings = search_settings(run.config, args)
            check_n_best(args.n_best, settings)
            if text is None:
                text = _read_test_split(run.config, args.reference)
            if text.reference == []:
                raise UserError("there is nothing to translate and score: the text is empty")
            scorer = Scorer(run.config.data.target_lang)
        collective = args.expert_parallel > 1
        share = Share(world.rank, world.size, distributed.any_rank if collective else None)
        max_positions = run.config.model.max_positions
        search = replace(build_search(settings, run.vocab, max_positions), num_best=args.n_best)
        limits = build_limits(settings, max_positions)
        started = time.monotonic()
        translated = _translate(run, text, args.format, search, limits, device, share)
        if translated is not None:
            lines, cut = translated
            _report(len(lines), cut, time.monotonic() - started, world.size)
            _finish(args, lines, text, scorer)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ds-seq generate",
        description="Translate text; with a reference, print BLEU and chrF with their signatures.",
        allow_abbrev=False,
    )
    add_model_arguments(parser)
    add = parser.add_argument
    add("--input", help="text, one sentence a line; - = standard input (default: data.raw.test)")
    add("--output", default=STANDARD, help="file for the translations (default: standard output)")
    add("--reference", help="raw reference text to score against")
    add("--n-best", type=int, default=1, metavar="N",
        help="write the N best translations of each line (default: %(default)s)")  # fmt: skip
    add("--format", choices=FORMATS, default="text",
        help="text: the best translation; tsv: line number, score, translation; jsonl: one object "
        "a line of the input; fairseq: the S-, T-, H-, D- and P-lines of fairseq-generate "
        "(default: %(default)s)")  # fmt: skip
    add("--samples", type=int, default=0, help="sample translations to show (default: none)")
    add_search_arguments(parser)
    return parser


def _check_arguments(args: argparse.Namespace, world_size: int) -> None:
    """Find what is wrong with the arguments before anything costs time."""
    if args.input == STANDARD and world_size > 1:
        raise UserError(
            f"--input -: {world_size} processes cannot share standard input; give a file"
        )
    if args.n_best > 1 and args.format == "text":
        raise UserError(
            f"--n-best {args.n_best}: --format text has one translation a line; add --format tsv, "
            "jsonl or fairseq"
        )
    check_expert_parallel(args.expert_parallel, world_size)
    check_writable(args.output)


def _read_input(path: str, reference: str | None) -> _Text:
    source = read_lines(path)
    return _Text(source, None if reference is None else _read_reference(source, path, reference))


def _read_reference(source: Sequence[str], name: str, path: str) -> list[str]:
    reference = read_lines(path)
    check_counts(source, name, reference, path)
    return reference


def _read_test_split(config: ExperimentConfig, reference: str | None) -> _Text:
    files = [RawSplit(pair.source, pair.target) for pair in config.data.raw.test]
    if not files:
        raise UserError("data.raw.test: names no text; give --input FILE")
    text = read_raw("test", files)
    if reference is None:
        return _Text(text.source, text.target)
    return _Text(text.source, _read_reference(text.source, "data.raw.test", reference))


def _translate(
    run: LoadedRun,
    text: _Text,
    form: OutputFormat,
    search: BeamSearch,
    limits: BatchLimits,
    device: torch.device,
    share: Share,
) -> tuple[list[_Line], list[int]] | None:
    """Translate this process's share, with a progress bar on the first; see `gather_lines`."""
    nfkc = run.config.data.clean.nfkc
    lines = [normalise(line, nfkc) for line in text.source]
    reference = None
    if text.reference is not None:
        reference = [normalise(line, nfkc) for line in text.reference]
    writer = LineWriter(form, run.vocab, lines, reference)

    def answer(found: Found) -> _Line:
        best = plain_text(run.vocab, found.hypotheses[0].tokens)
        return _Line(best, best if form == "text" else writer(found.line, found.hypotheses))

    model = cast(Seq2SeqTransformer, run.model)  # or an external model with the same methods
    found = search_lines(model, run.vocab, lines, search, limits, device, share)
    if share.rank != 0:
        return gather_lines(found, answer, share)
    with Progress("translate", share.size(len(lines)), "sentences") as progress:
        return gather_lines(found, answer, share, progress)


def _report(count: int, cut: list[int], seconds: float, world_size: int) -> None:
    """Say on stderr how fast it went, and what was not translated as a whole."""
    print(
        f"translated {count:,} sentences in {seconds:.1f} s "
        f"({count / max(seconds, 1e-9):,.1f} sentences/s, {world_size} process(es))",
        file=sys.stderr,
    )
    if cut:
        named = ", ".join(map(str, cut[:_MOST_NAMED_LINES]))
        more = ", ..." if len(cut) > _MOST_NAMED_LINES else ""
        print(
            f"ds-seq: warning: {len(cut)} sentence(s) longer than the model can take were cut; "
            f"line(s) {named}{more}",
            file=sys.stderr,
        )


def _finish(args: argparse.Namespace, lines: list[_Line], text: _Text, scorer: Scorer) -> None:
    """Write the output; show samples and scores, on stderr where stdout is the output."""
    write_lines(args.output, [line.output for line in lines])
    stream = sys.stderr if args.output == STANDARD else sys.stdout
    translations = [line.best for line in lines]
    reference = text.reference
    if args.samples > 0:
        print(format_samples(text.source, translations, reference, args.samples), file=stream)
    if reference is not None:
        for result in scorer(translations, reference):
            print(result, file=stream)


if __name__ == "__main__":
    raise SystemExit(run_command(main, sys.argv[1:]))
