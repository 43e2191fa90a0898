"""``ds-seq pseudo-label``: a data folder whose targets are what a teacher makes of the sources.

    ds-seq pseudo-label runs/teacher --data data/x --out data/labels --beam 5
    torchrun --nproc_per_node 8 -m ds_seq pseudo-label runs/teacher --data data/x --out data/labels

Kim and Rush, 2016, "Sequence-Level Knowledge Distillation", https://arxiv.org/abs/1606.07947;
Shleifer and Rush, 2020, "Pre-trained Summarization Distillation", https://arxiv.org/abs/2010.13002.

Ids of the shards are searched, and the ids that are found become shards: no text is encoded anew.
Batches are cut from the whole split and dealt out to the ranks, so that their content, and with it
each digit, is the same for any number of ranks. A batch that is done is in a journal: after a kill
the same command goes on with the others.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from ds_seq import distributed
from ds_seq.commands.options import (
    add_model_arguments,
    add_search_arguments,
    check_expert_parallel,
    check_n_best,
    load_model,
    parse_device,
    search_settings,
)
from ds_seq.config.generation import GenerationConfig
from ds_seq.data.progress import Progress
from ds_seq.data.shards import ShardReader
from ds_seq.data.source import SOURCE
from ds_seq.distill.assembly import Sources, Summary, assemble, copy_rest, workers_for
from ds_seq.distill.filters import METRICS, Filters, Similarity
from ds_seq.distill.journal import JournalWriter
from ds_seq.distill.work_folder import (
    Settings,
    WorkFolder,
    data_fingerprint,
    teacher_fingerprint,
)
from ds_seq.distributed import World
from ds_seq.errors import UserError
from ds_seq.generation.translate import BatchLimits, cut_batches, search_batches
from ds_seq.generation.workers import default_workers
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.runs.open import StoredRun, open_run
from ds_seq.search.beam_search import BeamSearch
from ds_seq.tasks import build_limits, build_search

_BATCH_SIZE = {"max_tokens", "max_sentences"}
"""Fields of `GenerationConfig` that may change when a labelling goes on."""


@dataclass(frozen=True)
class _Job:
    """What is to be done, the same on every rank."""

    run: StoredRun
    reader: ShardReader
    settings: GenerationConfig
    search: BeamSearch
    limits: BatchLimits
    device: torch.device
    dtype: str
    filters: Filters


def main(argv: Sequence[str]) -> int:
    """The command ``ds-seq pseudo-label``; returns the exit code."""
    args = _parser().parse_args(argv)
    work = WorkFolder(Path(args.out))
    with distributed.joined() as world:
        done = None
        with distributed.shared_errors():
            _check_arguments(args, world.size)
            job = _plan(args, world)
            if world.is_first:
                work.check_new(Path(args.data))
                done = _begin(args, job, work)
        done = distributed.broadcast_object(done)
        seconds = _decode(args, job, work, done, world)
        if world.is_first:
            _finish(args, job, work, len(done), seconds, world.size)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ds-seq pseudo-label",
        description="Make a data folder whose targets are a teacher's translations. After a kill "
        "the same command goes on.",
        allow_abbrev=False,
    )
    add_model_arguments(parser)
    add = parser.add_argument
    add("--data", required=True, help="data folder with the shards to label")
    add("--out", required=True, help="new data folder")
    add("--split", default="train", help="what to label; others are taken over (default: train)")
    add("--n-best", type=int, default=1, metavar="N",
        help="hypotheses of a source, each a pair of its own (default: %(default)s)")  # fmt: skip
    add("--original", type=float, default=0.0, metavar="TIMES",
        help="mix in every original pair so often; 0.5 = half of them (default: none)")  # fmt: skip
    group = parser.add_argument_group("filters (a hypothesis must pass all)")
    group.add_argument("--min-score", type=float, metavar="X",
        help="least score by the teacher: log-probability / length ** length penalty")  # fmt: skip
    group.add_argument("--max-ratio", type=float, metavar="X",
        help="neither side has more than X times the other's tokens")  # fmt: skip
    for name in METRICS:
        group.add_argument(f"--min-{name}", type=float, metavar="X",
            help=f"least sentence {name} against the reference, 0 to 100")  # fmt: skip
    group.add_argument("--best-metric", choices=METRICS,
        help="of the N best keep the one closest to the reference")  # fmt: skip
    add_search_arguments(parser)
    return parser


def _check_arguments(args: argparse.Namespace, world_size: int) -> None:
    """Find what is wrong with the arguments before anything costs time."""
    check_expert_parallel(args.expert_parallel, world_size)
    if args.best_metric is not None and args.n_best < 2:
        raise UserError("--best-metric: there is nothing to choose from; add --n-best 5, say")
    if not 0 <= args.original < float("inf"):
        raise UserError(f"--original {args.original}: must be 0 or more")
    if args.max_ratio is not None and not args.max_ratio >= 1:
        raise UserError(f"--max-ratio {args.max_ratio}: must be at least 1")


def _plan(args: argparse.Namespace, world: World) -> _Job:
    """Open teacher and data, and see that they and the arguments fit together."""
    device = world.device if args.device is None else parse_device(args.device)
    run = open_run(args.run, args.checkpoint)
    settings = search_settings(run.config, args)
    check_n_best(args.n_best, settings)
    reader = ShardReader(args.data, args.split, run.tokenizers.fingerprint)
    least = {name: vars(args)[f"min_{name}"] for name in METRICS}
    filters = Filters(
        args.min_score,
        args.max_ratio,
        {name: value for name, value in least.items() if value is not None},
        args.best_metric,
    )
    Similarity(filters.metrics, reader.manifest.languages[1])  # needs what is not installed?
    max_positions = run.config.model.max_positions
    search = build_search(settings, run.tokenizers.symbols, max_positions)
    search = replace(search, num_best=args.n_best)
    trained = run.config.train.precision if device.type == "cuda" else "fp32"
    return _Job(
        run,
        reader,
        settings,
        search,
        build_limits(settings, max_positions),
        device,
        args.dtype or trained,
        filters,
    )


def _begin(args: argparse.Namespace, job: _Job, work: WorkFolder) -> NDArray[np.int64]:
    """Write down what is being done, or compare; returns the sentences that are done."""
    search = job.settings.model_dump(exclude=_BATCH_SIZE)
    settings: Settings = {
        "teacher": teacher_fingerprint(job.run),
        "data": data_fingerprint(Path(args.data), args.split),
        "split": args.split,
        "dtype": job.dtype,
        "n-best": args.n_best,
        **{name.replace("_", "-"): value for name, value in search.items()},
    }
    paths = {"checkpoint": job.run.weights.path, "data": args.data}
    return work.begin(settings, {name: str(Path(path).resolve()) for name, path in paths.items()})


def _decode(
    args: argparse.Namespace, job: _Job, work: WorkFolder, done: NDArray[np.int64], world: World
) -> float:
    """Search what is not done, this rank's share of it; returns the seconds till all were ready."""
    reader = job.reader
    usable = np.flatnonzero(_usable(job))
    remaining = np.ones(len(reader), bool)
    remaining[done] = False
    batches = [usable[batch] for batch in cut_batches(reader.lengths[usable, SOURCE], job.limits)]
    batches = [left for batch in batches if len(left := batch[remaining[batch]])]
    if not batches:  # on all ranks
        return 0.0
    mine = batches[world.rank :: world.size]
    with distributed.shared_errors():
        # by its path: "best" may be another one by now, if the teacher is still being trained
        checkpoint = str(job.run.weights.path)
        run = load_model(args.run, checkpoint, job.dtype, job.device, args.expert_parallel)
        writer = JournalWriter(work.journal(world.rank), run.tokenizers.target.symbols.eos)
    model = cast(Seq2SeqTransformer, run.model)  # or an external model with the same methods
    any_rank = distributed.any_rank if args.expert_parallel > 1 else None
    started = time.monotonic()
    bar = Progress("pseudo-label", sum(map(len, mine)), "sentences") if world.is_first else None
    with writer, bar or nullcontext():
        for batch, found in search_batches(
            model,
            job.search,
            mine,
            lambda row: reader[row][0].tolist(),
            job.device,
            any_rank,
            default_workers(job.device),
        ):
            writer.append(batch, found)
            if bar is not None:
                bar(len(batch))
    distributed.barrier()
    return time.monotonic() - started


def _usable(job: _Job) -> NDArray[np.bool_]:
    """Which sources (N,) have a token beside the end symbol and are not too long."""
    lengths = job.reader.lengths[:, SOURCE]
    return (lengths > 1) & (lengths <= job.limits.max_source_length)


def _finish(
    args: argparse.Namespace,
    job: _Job,
    work: WorkFolder,
    num_before: int,
    seconds: float,
    world_size: int,
) -> None:
    """Make the new data folder of the journals, and tell about it."""
    num_done = int(_usable(job).sum())
    print(
        f"decoded {num_done - num_before:,} sentences in {seconds:.1f} s "
        f"({(num_done - num_before) / max(seconds, 1e-9):,.1f} sentences/s, {world_size} "
        f"process(es)); {num_before:,} were done before",
        flush=True,
    )
    out = Path(args.out)
    copy_rest(Path(args.data), out, args.split, job.run.tokenizers.target)
    sources = Sources(job.reader, work.journals(), job.run.tokenizers)
    with Progress("writing shards", num_done * args.n_best, "hypotheses") as progress:
        summary = assemble(
            sources,
            job.filters,
            args.original,
            out,
            args.split,
            job.run.config.data.shard_size,
            workers_for(num_done * args.n_best),
            progress,
        )
    work.remove()
    print(_report(args, job, summary))


def _report(args: argparse.Namespace, job: _Job, summary: Summary) -> str:
    """What was written, and what was not."""
    lengths, longest = job.reader.lengths[:, SOURCE], job.limits.max_source_length
    lines = [
        f"{args.split}: {summary.labels:,} labels of {summary.sentences:,} sentences and "
        f"{summary.originals:,} original pairs -> {args.out}",
        f"    mean score {summary.mean_score:.3f}, {summary.mean_ratio:.3f} tokens for each token "
        "of the source",
    ]
    left_out = {
        f"sources longer than the teacher's {longest} tokens": int((lengths > longest).sum()),
        "empty sources": int((lengths <= 1).sum()),
    }
    lines += [f"    left out {count:>11,}  {what}" for what, count in left_out.items() if count]
    dropped = {"empty": 0} | dict(summary.dropped)
    lines += [
        f"    dropped  {count:>11,}  of {summary.hypotheses:,} hypotheses: {name}"
        for name, count in dropped.items()
        if count or name.startswith("--")
    ]
    return "\n".join(lines)
