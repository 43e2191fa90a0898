"""`ds-seq teacher-cache`: cache a teacher's outputs, so that training does not have to run it.

    ds-seq teacher-cache runs/big --data data/x --top-k 8
    torchrun --nproc_per_node 8 -m ds_seq teacher-cache runs/big --data data/x --top-k 8

See `ds_seq.distill.fill_cache`. Training reads the written folder if `criterion.cache` names it. An
interrupted command resumes when it is run again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from ds_seq import distributed, files
from ds_seq.commands.arguments.teacher_cache import build_parser
from ds_seq.commands.options import check_expert_parallel, chosen_device
from ds_seq.config.load import load_experiment
from ds_seq.data.open import open_shards
from ds_seq.data.shards import ShardReader, manifest_path
from ds_seq.data.truncation import UNCUT, Limits, TruncatedSource
from ds_seq.distill.fill_cache import (
    CachedSplit,
    CacheOptions,
    TeacherReader,
    plan_splits,
    write_missing,
)
from ds_seq.distill.teacher import LiveTeacher, Loading, load_teacher
from ds_seq.errors import UserError
from ds_seq.runs.card import LoadedRun
from ds_seq.runs.data import check_for_model, untagged_warning
from ds_seq.runs.formats.ds_seq import EXPORT_SUFFIX
from ds_seq.tasks import cut_limits


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq teacher-cache`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    with distributed.joined(args.hang_seconds) as world:
        with distributed.shared_errors():
            folder = args.out or _default_folder(args)
            sources = _open(args, world.size)
            device = chosen_device(args, world)
        vocab_hash = next(iter(sources.values())).vocab_hash
        loading = Loading(args.checkpoint, args.dtype, args.expert_parallel, zero3=False)
        teacher = load_teacher(args.runs, loading, vocab_hash, device)
        size = len(teacher.runs[0].tokenizers.target)  # of two vocabularies the larger is known
        if args.top_k > size:
            raise UserError(f"--top-k {args.top_k}: the vocabulary of the target has {size} tokens")
        options = CacheOptions(folder, args.top_k, args.precision, args.part_tokens)
        started = time.monotonic()
        lock = None
        with distributed.shared_errors():
            for (split, source), (name, run) in product(
                sources.items(), zip(args.runs, teacher.runs, strict=True)
            ):
                check_for_model(source, args.data, split, name, run)
            if world.is_first:
                _warn(sources, teacher.runs[0])
                advice = "stop that process first, or give another --out"
                lock = files.Lock(folder / files.LOCK_FILE, folder, advice)
            limits = _cut(args, teacher)
            cut = {name: TruncatedSource(source, limits) for name, source in sources.items()}
            pairs = sources if limits == UNCUT else cut
            splits = plan_splits(options, args.runs, teacher, pairs, world)
        read = TeacherReader(teacher, device, _max_tokens(args, teacher), args.expert_parallel > 1)
        tokens = write_missing(splits, read, world)
        if lock is not None:
            for split in splits:
                split.writer.finish()
            lock.release()
            _report(splits, tokens, time.monotonic() - started, world.size)
    return 0


def _open(args: argparse.Namespace, world_size: int) -> dict[str, ShardReader]:
    """Open the shards of each split, all of which must have the same vocabulary."""
    check_expert_parallel(args.expert_parallel, world_size)
    splits = args.splits or [
        split for split in ("train", "valid") if manifest_path(args.data, split).exists()
    ]
    first, *others = splits or ["train"]
    sources = {first: open_shards(args.data, first)}
    vocab_hash, size = sources[first].vocab_hash, sources[first].vocab_size
    sources |= {split: open_shards(args.data, split, vocab_hash) for split in others}
    if args.top_k > size:
        raise UserError(f"--top-k {args.top_k}: the vocabulary has {size} tokens")
    return sources


def _cut(args: argparse.Namespace, teacher: LiveTeacher) -> Limits:
    """Return at what lengths pairs are cut: as the student's training does, or the teacher's did.

    Raises:
        UserError: the experiment of the student is invalid, or the teachers differ.
    """
    if args.student is not None:
        return cut_limits(load_experiment(args.student).data)
    experiments = [run.experiment for run in teacher.runs]
    found = {UNCUT if each is None else cut_limits(each.data) for each in experiments}
    if len(found) > 1:
        raise UserError(
            "--student: is missing; the teachers were trained on pairs of other lengths "
            "(data.long_pairs), so the experiment of the student has to say how they are cut"
        )
    return found.pop()


def _default_folder(args: argparse.Namespace) -> Path:
    """Return a folder next to the shards, named after the runs."""
    names = [Path(run).resolve().name.removesuffix(EXPORT_SUFFIX) for run in args.runs]
    folder: Path = args.data / f"teacher-{'+'.join(names)}-top{args.top_k}"
    return folder


def _max_tokens(args: argparse.Namespace, teacher: LiveTeacher) -> int:
    if args.max_tokens is not None:
        return int(args.max_tokens)
    return min(run.card.sizes.max_tokens for run in teacher.runs)


def _warn(sources: Mapping[str, ShardReader], run: LoadedRun) -> None:
    for split, source in sources.items():
        untagged = untagged_warning(source, run.card)
        if untagged is not None:
            print(f"ds-seq: warning: {split}: {untagged}", file=sys.stderr)


def _report(splits: Sequence[CachedSplit], tokens: int, seconds: float, world_size: int) -> None:
    """Print to stderr what was done, and warnings about pairs that were left out."""
    for split in splits:
        manifest = split.writer.manifest
        if manifest.left_out:
            print(
                f"ds-seq: warning: {manifest.left_out:,} pair(s) of {split.writer.split} are "
                f"longer than the {manifest.max_length} tokens that the teacher reads and are left "
                "out; train with data.max_source_length and data.max_target_length of at most "
                f"{manifest.max_length}",
                file=sys.stderr,
            )
    writers = [split.writer for split in splits]
    size, total = sum(w.size for w in writers), sum(w.num_tokens() for w in writers)
    print(
        f"cached {tokens:,} target tokens in {seconds:.1f} s ({tokens / seconds:,.0f} "
        f"tokens/s, {world_size} process(es)); {size / 1e6:,.1f} MB for {total:,} tokens; train "
        f"with criterion.cache={writers[0].folder}",
        file=sys.stderr,
    )
