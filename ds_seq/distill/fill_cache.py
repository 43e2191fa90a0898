"""Cache the outputs of a teacher, so that training does not have to run it.

For every target token, the most probable tokens and their log-probabilities are written next to the
shards. The work is divided into parts; finished parts are not computed again.

Shapes: `N` real target tokens of a batch, `V` vocabulary, `K` stored tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ds_seq import distributed
from ds_seq.activity import finished, mark
from ds_seq.data.batch import ParallelDataset, TopTokens
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.cache_manifest import TeacherRecord
from ds_seq.data.progress import Progress, Report, ignore
from ds_seq.data.source import TARGET, Source
from ds_seq.data.teacher_cache import CacheWriter, Stored, plan_cache, token_places
from ds_seq.distill.teacher import LiveTeacher, row_blocks
from ds_seq.distributed import World

_DIGESTED = 8


def top_tokens(logits: Tensor, k: int) -> TopTokens:
    """Return the k most probable tokens of logits (N, V) with log-probabilities over all V."""
    ids, log_probs = [], []
    for block in row_blocks(logits):
        rows = block.float()
        best = rows.topk(k, dim=1).indices
        ids.append(best)
        log_probs.append(rows.log_softmax(1).gather(1, best))
    return TopTokens(torch.cat(ids), torch.cat(log_probs))


class CachedSplit(NamedTuple):
    """A split and the writer of its cache."""

    pairs: ParallelDataset
    """All pairs of the split, of any length."""
    writer: CacheWriter


class TeacherReader:
    """Runs the teacher on sentence pairs.

    Args:
        teacher: the teacher to run.
        device: device of the teacher.
        max_tokens: maximum padded size of a batch in tokens.
        collective: whether all ranks must run the teacher together.
    """

    def __init__(
        self, teacher: LiveTeacher, device: torch.device, max_tokens: int, collective: bool
    ) -> None:
        self._teacher, self._device = teacher, device
        self._max_tokens, self.collective = max_tokens, collective

    def __call__(self, split: CachedSplit, part: int, report: Report) -> NDArray[np.void]:
        """Return the records (T,) of a part; zeros for pairs that are too long for the teacher."""
        dataset, manifest = split.pairs, split.writer.manifest
        pairs = np.asarray(split.writer.pairs(part))
        lengths = dataset.lengths[pairs, TARGET]
        starts = np.cumsum(lengths) - lengths
        records = np.zeros(int(lengths.sum()), manifest.record)
        longest = dataset.lengths[pairs].max(axis=1)
        for batch in self._batches(dataset, pairs[longest <= manifest.max_length]):
            inside = batch - pairs[0]
            places = token_places(starts[inside], lengths[inside])
            top = self._top_tokens(dataset, batch, manifest.top_k)
            records["ids"][places] = top.ids.cpu().numpy()
            records["log_probs"][places] = top.log_probs.cpu().numpy()
            report(len(places))
            mark()
        return records

    def wait(self, dataset: ParallelDataset) -> None:
        """Run empty batches until all ranks are done, if ranks run the teacher together."""
        while self.collective and distributed.any_rank(False):
            self._forward(dataset, np.zeros(0, np.int64))

    def _top_tokens(
        self, dataset: ParallelDataset, pairs: NDArray[np.integer], k: int
    ) -> TopTokens:
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
        """Yield batches of pairs of similar length."""
        if not len(pairs):
            return
        lengths = dataset.lengths[pairs]
        # a sentence that is longer than max_tokens gets a batch of its own
        bound = max(self._max_tokens, int(lengths.max()))
        for places in TokenBatchSampler(lengths, bound, accumulate=1).epoch(0):
            yield pairs[places]


@dataclass(frozen=True)
class CacheOptions:
    """Options of a cache.

    Attributes:
        folder: folder of the cache.
        top_k: number K of tokens stored per target token.
        precision: number format of the stored log-probabilities: `fp16` or `fp32`.
        part_tokens: target tokens per part; an interruption loses at most one part per rank.
    """

    folder: Path
    top_k: int
    precision: Stored
    part_tokens: int


def plan_splits(
    options: CacheOptions,
    names: Sequence[str],
    teacher: LiveTeacher,
    sources: Mapping[str, Source],
    world: World,
) -> list[CachedSplit]:
    """Plan the cache of each split; the first rank creates or checks the folder.

    Args:
        options: options of the cache.
        names: names of the teachers, as given by the user.
        teacher: the loaded teachers.
        sources: the shards of each split.
        world: this rank and the number of ranks.

    Raises:
        UserError: the folder holds a cache with other settings.
    """
    records = [
        TeacherRecord(
            name, str(run.source), str(next(run.model.parameters()).dtype), _digest(run.model)
        )
        for name, run in zip(names, teacher.runs, strict=True)
    ]
    max_length = min(run.card.max_positions for run in teacher.runs)
    splits = []
    for name, source in sources.items():
        manifest = plan_cache(
            source, options.top_k, options.precision, records, max_length, options.part_tokens
        )
        writer = CacheWriter(options.folder, name, manifest, source)
        if world.is_first:
            writer.start()
        splits.append(CachedSplit(ParallelDataset(source), writer))
    return splits


def _digest(model: nn.Module) -> str:
    """Compute a digest of a trained model from the first numbers of all its tensors.

    They are few enough to be present on ranks that hold only some rows of the expert tensors.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        start = parameter.detach().flatten()[:_DIGESTED]
        digest.update(start.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def write_missing(splits: Sequence[CachedSplit], read: TeacherReader, world: World) -> int:
    """Compute this rank's share of the missing parts; return the number of tokens of all ranks.

    A collective. Afterwards the first rank calls `CacheWriter.finish` for each split.
    """
    # only the first rank looks: a fast rank may have written a part before a slow one looks
    missing = distributed.broadcast_object(
        [(place, part) for place, split in enumerate(splits) for part in split.writer.missing()]
    )
    share = [(splits[place], part) for place, part in missing[world.rank :: world.size]]
    tokens = sum(split.writer.num_tokens(part) for split, part in share)
    # when ranks run together, a failed rank cannot join the others to report its error
    errors = nullcontext() if read.collective else distributed.shared_errors()
    shown = Progress("teacher-cache", tokens, "tokens") if world.is_first else nullcontext(ignore)
    with errors, shown as report:
        for number, (split, part) in enumerate(share, 1):
            split.writer.write(part, read(split, part, report))
            finished("teacher", number)
        read.wait(splits[0].pairs)
    distributed.barrier()
    return int(distributed.sum_over_ranks(torch.tensor(tokens, dtype=torch.float64)))
