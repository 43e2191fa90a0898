"""Labels of a teacher: a data folder whose targets are what it makes of the sources.

Kim and Rush, 2016, "Sequence-Level Knowledge Distillation", https://arxiv.org/abs/1606.07947;
Shleifer and Rush, 2020, "Pre-trained Summarization Distillation", https://arxiv.org/abs/2010.13002.

Ids of the shards are searched, and the ids that are found become shards: no text is encoded anew.
Batches are cut from the whole split and dealt out to the ranks, so that their content, and with it
each digit, is the same for any number of ranks. A batch that is done is in a journal: after a kill
the same command goes on with the others.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ds_seq import distributed
from ds_seq.data.progress import Progress
from ds_seq.data.shards import ShardReader
from ds_seq.data.source import SOURCE
from ds_seq.distill.assembly import Sources, Summary, assemble, copy_rest, workers_for
from ds_seq.distill.filters import Filters
from ds_seq.distill.journal import JournalWriter
from ds_seq.distill.work_folder import Settings, WorkFolder, data_fingerprint
from ds_seq.distributed import World
from ds_seq.generation.build import BATCH_SIZE, Decoding
from ds_seq.generation.translate import cut_batches, search_batches
from ds_seq.generation.workers import default_workers
from ds_seq.runs.card import StoredRun
from ds_seq.runs.open import load_packed, weights_fingerprint


@dataclass(frozen=True)
class Labeling:
    """What is to be done, the same on every rank but for the device.

    Attributes:
        teacher: path of its run or export.
        run: what that is.
        data: folder of the shards.
        split: which of them.
        reader: reads them.
        decoding: how to search; as many hypotheses as `num_best` are returned.
        num_best: hypotheses of a source, each a pair of its own.
        filters: what a hypothesis must pass.
        original: how often every original pair is mixed in.
        device: where the teacher runs.
        dtype: its number format, by name.
        expert_parallel: ranks to spread its experts over.
    """

    teacher: str
    run: StoredRun
    data: Path
    split: str
    reader: ShardReader
    decoding: Decoding
    num_best: int
    filters: Filters
    original: float
    device: torch.device
    dtype: str
    expert_parallel: int

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which sources (N,) have a token besides the end symbol and are not too long."""
        lengths = self.reader.lengths[:, SOURCE]
        return (lengths > 1) & (lengths <= self.decoding.limits.max_source_length)

    @property
    def num_usable(self) -> int:
        """How many sources are searched."""
        return int(self.usable.sum())


def begin(job: Labeling, work: WorkFolder) -> NDArray[np.int64]:
    """Write down what is being done, or compare; returns the sentences that are done.

    Raises:
        UserError: the work was begun with other settings, or another process is at it.
    """
    search = job.decoding.settings.model_dump(exclude=set(BATCH_SIZE))
    settings: Settings = {
        "teacher": weights_fingerprint(job.run),
        "data": data_fingerprint(job.data, job.split),
        "split": job.split,
        "dtype": job.dtype,
        "n-best": job.num_best,
        **{name.replace("_", "-"): value for name, value in search.items()},
    }
    paths = {"checkpoint": job.run.source, "data": job.data}
    return work.begin(settings, {name: str(path.resolve()) for name, path in paths.items()})


def decode(job: Labeling, work: WorkFolder, done: NDArray[np.int64], world: World) -> float:
    """Search what is not done, this rank's share of it; a collective.

    Args:
        job: what to search.
        work: where the hypotheses go.
        done: what `begin` returned, on every rank.
        world: of this rank.

    Returns:
        The seconds until all ranks were ready.
    """
    reader = job.reader
    usable = np.flatnonzero(job.usable)
    remaining = np.ones(len(reader), bool)
    remaining[done] = False
    lengths = reader.lengths[usable, SOURCE]
    batches = [usable[batch] for batch in cut_batches(lengths, job.decoding.limits)]
    batches = [left for batch in batches if len(left := batch[remaining[batch]])]
    if not batches:  # on all ranks
        return 0.0
    mine = batches[world.rank :: world.size]
    with distributed.shared_errors():
        # by its path: "best" may be another one by now, if the teacher is still being trained
        checkpoint = str(job.run.source)
        run = load_packed(job.teacher, checkpoint, job.dtype, job.device, job.expert_parallel)
        writer = JournalWriter(work.journal(world.rank), run.tokenizers.target.symbols.eos)
    any_rank = distributed.any_rank if job.expert_parallel > 1 else None
    started = time.monotonic()
    bar = Progress("pseudo-label", sum(map(len, mine)), "sentences") if world.is_first else None
    with writer, bar or nullcontext():
        for batch, found in search_batches(
            run.seq2seq,
            job.decoding.search,
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


def finish(job: Labeling, work: WorkFolder, out: Path) -> Summary:
    """Make the new data folder ``out`` of what all ranks have decoded; the work folder goes."""
    copy_rest(job.data, out, job.split, job.run.tokenizers.target)
    sources = Sources(job.reader, work.journals(), job.run.tokenizers)
    most = job.num_usable * job.num_best
    with Progress("writing shards", most, "hypotheses") as progress:
        summary = assemble(
            sources,
            job.filters,
            job.original,
            out,
            job.split,
            job.run.card.sizes.shard_size,
            workers_for(most),
            progress,
        )
    work.remove()
    return summary
