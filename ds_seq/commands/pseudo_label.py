"""`ds-seq pseudo-label`: make a data folder whose targets are a teacher's translations.

    ds-seq pseudo-label runs/teacher --data data/x --out data/labels --beam 5
    torchrun --nproc_per_node 8 -m ds_seq pseudo-label runs/teacher --data data/x --out data/labels

See `ds_seq.distill.pseudo_labels`. An interrupted command resumes when it is run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ds_seq import distributed
from ds_seq.commands.arguments.pseudo_label import build_parser
from ds_seq.commands.options import check_expert_parallel, chosen_device, search_settings
from ds_seq.config.load import load_experiment
from ds_seq.config.outside import TOKENIZING
from ds_seq.data.open import open_shards
from ds_seq.data.shards import ShardReader
from ds_seq.data.source import SOURCE
from ds_seq.distill.assembly import Summary
from ds_seq.distill.corpora import source_tags
from ds_seq.distill.filters import Filters, Similarity
from ds_seq.distill.pseudo_labels import Labeling, begin, decode, finish
from ds_seq.distill.vocabularies import Retokenized
from ds_seq.distill.work_folder import WorkFolder
from ds_seq.distributed import World
from ds_seq.errors import UserError
from ds_seq.generation.build import Decoding, check_n_best
from ds_seq.names import FILTER_METRICS
from ds_seq.runs.card import StoredRun
from ds_seq.runs.data import open_for_model, untagged_warning
from ds_seq.runs.decoding import run_decoding
from ds_seq.runs.fusion import with_language_model
from ds_seq.runs.open import default_dtype, open_run
from ds_seq.runs.shortlist import with_shortlist
from ds_seq.text.build import load_tokenizers
from ds_seq.text.round_trip import rewriting
from ds_seq.text.tokenizer import Tokenizer, Tokenizers


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq pseudo-label`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    out = Path(args.out)
    work = WorkFolder(out)
    with distributed.joined(args.hang_seconds) as world:
        done = None
        with distributed.shared_errors():
            _check_arguments(args, world.size)
            job = _plan(args, world)
            if world.is_first:
                work.check_new(job.data)
                done = begin(job, work)
        done = distributed.broadcast_object(done)
        seconds = decode(job, work, done, world)
        if world.is_first:
            num_before, num_done = len(done), job.num_usable
            print(
                f"decoded {num_done - num_before:,} sentences in {seconds:.1f} s "
                f"({(num_done - num_before) / max(seconds, 1e-9):,.1f} sentences/s, {world.size} "
                f"process(es)); {num_before:,} were done before",
                flush=True,
            )
            print(_report(job, out, finish(job, work, out)))
    return 0


def _check_arguments(args: argparse.Namespace, world_size: int) -> None:
    """Check the arguments before anything takes time."""
    check_expert_parallel(args.expert_parallel, world_size)
    if args.best_metric is not None and args.n_best < 2:
        raise UserError(
            "--best-metric: there is nothing to choose from; add for example --n-best 5"
        )


def _plan(args: argparse.Namespace, world: World) -> Labeling:
    """Open teacher and data, and check that they fit each other and the arguments."""
    device = chosen_device(args, world)
    run = open_run(args.run, args.checkpoint)
    settings = search_settings(run.card, args)
    check_n_best(args.n_best, settings)
    reader, student = _open_data(args, run)
    least = {name: vars(args)[f"min_{name}"] for name in FILTER_METRICS}
    filters = Filters(
        args.min_score,
        args.max_ratio,
        {name: value for name, value in least.items() if value is not None},
        args.best_metric,
    )
    Similarity(filters.metrics, reader.manifest.languages[1])  # raises if a package is missing
    retokenized = None
    if student is not None:
        pieces = list(run.card.source_tags.values())
        retokenized = Retokenized(reader, run.tokenizers, student.tokenizers, pieces)
    known = None if retokenized is None else retokenized.shared_tags
    tags = source_tags(reader, run.card, known)
    if world.is_first:
        target = run.tokenizers.target if student is None else student.tokenizers.target
        _warn(target, filters)
        untagged = None if tags or student else untagged_warning(reader, run.card)
        if untagged is not None:
            print(f"ds-seq: warning: {untagged}", file=sys.stderr)
    _, search, limits = run_decoding([run], settings, args.n_best)
    search = with_language_model(search, settings, run.tokenizers.target, device)
    search = with_shortlist(search, settings, run.tokenizers, device)
    return Labeling(
        teacher=args.run,
        run=run,
        data=Path(args.data),
        split=args.split,
        reader=reader,
        decoding=Decoding(settings, search, limits),
        num_best=args.n_best,
        filters=filters,
        original=args.original,
        device=device,
        dtype=args.dtype or default_dtype(run.card, device),
        expert_parallel=args.expert_parallel,
        tags=tags,
        retokenized=retokenized,
        joint_vocab=run.card.joint_vocab if student is None else student.is_joint,
    )


class _Student(NamedTuple):
    """What the student's experiment says about its vocabulary."""

    tokenizers: Tokenizers
    is_joint: bool


def _open_data(args: argparse.Namespace, run: StoredRun) -> tuple[ShardReader, _Student | None]:
    """Open the shards, and their vocabulary if it is not the teacher's."""
    found = open_shards(args.data, args.split).vocab_hash
    if found == run.tokenizers.fingerprint:
        return open_for_model(args.data, args.split, args.run, run), None
    if args.student is None:
        raise UserError(
            f"--data {args.data}: was made with vocabulary {found[:12]}, the teacher {args.run} "
            f"has {run.tokenizers.fingerprint[:12]}; add --student EXPERIMENT, the experiment that "
            "the data were prepared for, and the labels are written with its vocabulary"
        )
    data = load_experiment(args.student, runs=TOKENIZING).data
    tokenizers = load_tokenizers(data, args.data)
    if tokenizers.fingerprint != found:
        raise UserError(
            f"--student {args.student}: describes vocabulary {tokenizers.fingerprint[:12]}, the "
            f"shards in {args.data} have {found[:12]}; give the experiment they were prepared for"
        )
    reader = open_shards(args.data, args.split, found)
    if not run.card.can_read(reader.manifest.languages):
        raise UserError(
            f"{args.run}: translates {run.card.source_lang} -> {run.card.target_lang}, but "
            f"{args.data} holds {' -> '.join(reader.manifest.languages)}"
        )
    return reader, _Student(tokenizers, data.vocab.joint)


def _warn(target: Tokenizer, filters: Filters) -> None:
    """Warn about references that are not what the text says."""
    rule = rewriting(target)
    if filters.metrics and rule is not None:
        print(
            f"ds-seq: warning: {', '.join(filters.metrics)}: hypotheses are compared with the "
            f"references as the vocabulary rewrites them, by {rule}",
            file=sys.stderr,
        )


def _report(job: Labeling, out: Path, summary: Summary) -> str:
    """Describe what was written and what was left out."""
    lengths = job.lengths
    longest = job.decoding.limits.max_source_length
    lines = [
        f"{job.split}: {summary.labels:,} labels of {summary.sentences:,} sentences and "
        f"{summary.originals:,} original pairs -> {out}",
        f"    mean score {summary.mean_score:.3f}, {summary.mean_ratio:.3f} tokens per "
        "source token",
    ]
    left_out = {
        f"sources longer than the teacher's {longest} tokens": int((lengths > longest).sum()),
        "empty sources": int((job.reader.lengths[:, SOURCE] <= 1).sum()),
    }
    lines += [f"    left out {count:>11,}  {what}" for what, count in left_out.items() if count]
    dropped = {"empty": 0} | dict(summary.dropped)
    lines += [
        f"    dropped  {count:>11,}  of {summary.hypotheses:,} hypotheses: {name}"
        for name, count in dropped.items()
        if count or name.startswith("--")
    ]
    return "\n".join(lines)
