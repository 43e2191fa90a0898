"""``ds-seq teacher-cache``: ask a teacher once, so that training needs it no more.

    ds-seq teacher-cache runs/big --data data/x --top-k 8
    torchrun --nproc_per_node 8 -m ds_seq teacher-cache runs/big --data data/x --top-k 8

For every target token it writes the most probable tokens and their probabilities beside the shards;
``criterion.cache`` names the folder. Work is cut into parts. A command that was killed goes on when
it is given again: parts that are finished are not computed again.

Legend: ``N`` real target tokens of a batch, ``V`` vocabulary, ``K`` kept tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ds_seq import distributed
from ds_seq.commands.options import (
    add_loading_arguments,
    check_expert_parallel,
    parse_device,
)
from ds_seq.data.batch import TopTokens
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.dataset import ParallelDataset
from ds_seq.data.open import open_shards
from ds_seq.data.progress import Progress, Report, ignore
from ds_seq.data.shards import manifest_path
from ds_seq.data.source import TARGET, Source
from ds_seq.data.teacher_cache import CacheWriter, TeacherRecord, plan_cache, token_places
from ds_seq.distill.teacher import LiveTeacher, Loading, load_teacher, row_blocks
from ds_seq.distributed import World
from ds_seq.errors import UserError
from ds_seq.runs.open import EXPORT_SUFFIX

_DIGESTED = 8


def main(argv: Sequence[str]) -> int:
    """The command ``ds-seq teacher-cache``; returns the exit code."""
    args = _parser().parse_intermixed_args(argv)
    with distributed.joined() as world:
        with distributed.shared_errors():
            args.out = args.out or _default_folder(args)
            sources = _open(args, world.size)
            device = world.device if args.device is None else parse_device(args.device)
        vocab_hash = next(iter(sources.values())).vocab_hash
        loading = Loading(args.checkpoint, args.dtype, args.expert_parallel, zero3=False)
        teacher = load_teacher(args.runs, loading, vocab_hash, device)
        started = time.monotonic()
        with distributed.shared_errors():
            splits = _plan(args, teacher, sources, world)
        asker = _Asker(teacher, device, _max_tokens(args, teacher), args.expert_parallel > 1)
        tokens = _write(splits, asker, world)
        if world.is_first:
            for split in splits:
                split.writer.finish()
            _report(splits, tokens, time.monotonic() - started, world.size)
    return 0


def top_tokens(logits: Tensor, k: int) -> TopTokens:
    """The k most probable tokens of logits (N, V), with their probabilities among all V."""
    ids, log_probs = [], []
    for block in row_blocks(logits):
        rows = block.float()
        best = rows.topk(k, dim=1).indices
        ids.append(best)
        log_probs.append(rows.log_softmax(1).gather(1, best))
    return TopTokens(torch.cat(ids), torch.cat(log_probs))


class _Split(NamedTuple):
    """Part of the work."""

    pairs: ParallelDataset
    """All of them, whatever their length."""
    writer: CacheWriter


class _Asker:
    """Reads sentence pairs with the teacher.

    Args:
        teacher: who answers.
        device: where it is.
        max_tokens: bound of the padded size of a batch.
        collective: whether all ranks have to read together.
    """

    def __init__(
        self, teacher: LiveTeacher, device: torch.device, max_tokens: int, collective: bool
    ) -> None:
        self._teacher, self._device = teacher, device
        self._max_tokens, self.collective = max_tokens, collective

    def __call__(self, split: _Split, part: int, report: Report) -> NDArray[np.void]:
        """The records (T,) of a part; zeros for pairs that are too long for the teacher."""
        dataset, manifest = split.pairs, split.writer.manifest
        pairs = np.asarray(split.writer.pairs(part))
        lengths = dataset.lengths[pairs, TARGET]
        starts = np.cumsum(lengths) - lengths
        records = np.zeros(int(lengths.sum()), manifest.record)
        longest = dataset.lengths[pairs].max(axis=1)
        for batch in self._batches(dataset, pairs[longest <= manifest.max_length]):
            inside = batch - pairs[0]
            places = token_places(starts[inside], lengths[inside])
            answer = self._ask(dataset, batch, manifest.top_k)
            records["ids"][places] = answer.ids.cpu().numpy()
            records["log_probs"][places] = answer.log_probs.cpu().numpy()
            report(len(places))
        return records

    def wait(self, dataset: ParallelDataset) -> None:
        """Where ranks read together: read empty batches until none has a sentence left."""
        while self.collective and distributed.any_rank(False):
            self._forward(dataset, np.zeros(0, np.int64))

    def _ask(self, dataset: ParallelDataset, pairs: NDArray[np.integer], k: int) -> TopTokens:
        if self.collective:
            distributed.any_rank(True)
        return top_tokens(self._forward(dataset, pairs), k)

    def _forward(self, dataset: ParallelDataset, pairs: NDArray[np.integer]) -> Tensor:
        symbols = self._teacher.runs[0].tokenizers.symbols
        batch = dataset.collate(pairs, symbols).to(self._device)
        logits = self._teacher(batch).logits
        assert logits is not None
        return logits

    def _batches(
        self, dataset: ParallelDataset, pairs: NDArray[np.integer]
    ) -> Iterator[NDArray[np.integer]]:
        """Sentences of like length together."""
        if not len(pairs):
            return
        lengths = dataset.lengths[pairs]
        # a sentence that is longer than a batch should be makes one of its own
        bound = max(self._max_tokens, int(lengths.max()))
        for places in TokenBatchSampler(lengths, bound, shuffle=False).epoch(0):
            yield pairs[places]


def _open(args: argparse.Namespace, world_size: int) -> dict[str, Source]:
    """The shards of each split, all of one vocabulary."""
    check_expert_parallel(args.expert_parallel, world_size)
    for name in ("top_k", "part_tokens", "max_tokens"):
        if (value := vars(args)[name]) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
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


def _default_folder(args: argparse.Namespace) -> Path:
    """Beside the shards, named after the runs."""
    names = [Path(run).resolve().name.removesuffix(EXPORT_SUFFIX) for run in args.runs]
    folder: Path = args.data / f"teacher-{'+'.join(names)}-top{args.top_k}"
    return folder


def _max_tokens(args: argparse.Namespace, teacher: LiveTeacher) -> int:
    if args.max_tokens is not None:
        return int(args.max_tokens)
    return min(run.config.train.max_tokens for run in teacher.runs)


def _plan(
    args: argparse.Namespace, teacher: LiveTeacher, sources: dict[str, Source], world: World
) -> list[_Split]:
    """What is to be written; on the first rank the folder is made or looked at."""
    records = [
        TeacherRecord(
            name, str(run.source), str(next(run.model.parameters()).dtype), _digest(run.model)
        )
        for name, run in zip(args.runs, teacher.runs, strict=True)
    ]
    max_length = min(run.config.model.max_positions for run in teacher.runs)
    splits = []
    for name, source in sources.items():
        manifest = plan_cache(
            source, args.top_k, args.precision, records, max_length, args.part_tokens
        )
        writer = CacheWriter(args.out, name, manifest, source)
        if world.is_first:
            writer.start()
        splits.append(_Split(ParallelDataset(source), writer))
    return splits


def _digest(model: nn.Module) -> str:
    """Tells trained models apart by the first numbers of all their tensors.

    So few that a rank with some of the experts, and thus of their tensors' rows, has them.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        start = parameter.detach().flatten()[:_DIGESTED]
        digest.update(start.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _write(splits: Sequence[_Split], asker: _Asker, world: World) -> int:
    """Compute this rank's share of what is missing; returns the tokens of all ranks."""
    # one rank looks, for a quick one may have written a part before a slow one looks
    todo = distributed.broadcast_object(
        [(place, part) for place, split in enumerate(splits) for part in split.writer.missing()]
    )
    mine = [(splits[place], part) for place, part in todo[world.rank :: world.size]]
    tokens = sum(split.writer.num_tokens(part) for split, part in mine)
    # where ranks read together, one that fails cannot meet the others to tell them
    told = nullcontext() if asker.collective else distributed.shared_errors()
    shown = Progress("teacher-cache", tokens, "tokens") if world.is_first else nullcontext(ignore)
    with told, shown as report:
        for split, part in mine:
            split.writer.write(part, asker(split, part, report))
        asker.wait(splits[0].pairs)
    distributed.barrier()
    return int(distributed.sum_over_ranks(torch.tensor(tokens, dtype=torch.float64)))


def _report(splits: Sequence[_Split], tokens: int, seconds: float, world_size: int) -> None:
    """Say on stderr what was done, and what could not be."""
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
        f"asked about {tokens:,} target tokens in {seconds:.1f} s ({tokens / seconds:,.0f} "
        f"tokens/s, {world_size} process(es)); {size / 1e6:,.1f} MB for {total:,} tokens; train "
        f"with criterion.cache={writers[0].folder}",
        file=sys.stderr,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ds-seq teacher-cache",
        description="Write what a teacher says about every target token, so that training with "
        "criterion.cache needs no teacher. Killed, it goes on when it is given again.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder, or a file or folder that `ds-seq export` made; of several the "
        "probabilities are averaged",
    )
    add("--data", required=True, type=Path, help="folder of shards made with their vocabulary")
    add("--top-k", required=True, type=int, metavar="K", help="most probable tokens to keep")
    add("--splits", nargs="+", help="which splits (default: train, and valid if it is there)")
    add("--out", type=Path, help="folder of the cache (default: one inside that of the shards)")
    add(
        "--precision",
        choices=("fp16", "fp32"),
        default="fp16",
        help="number format of the stored logarithms (default: %(default)s)",
    )
    add("--max-tokens", type=int, help="padded tokens of a batch (default: as in its training)")
    add(
        "--part-tokens",
        type=int,
        default=1 << 20,
        help="target tokens of a part, which is what a kill can cost (default: %(default)s)",
    )
    add_loading_arguments(parser)
    return parser
