"""Pseudo-labels: a data folder whose targets are a teacher's translations of the sources.

Kim and Rush, 2016, "Sequence-Level Knowledge Distillation", https://arxiv.org/abs/1606.07947;
Shleifer and Rush, 2020, "Pre-trained Summarization Distillation", https://arxiv.org/abs/2010.13002.

The search reads and writes token ids, so no text is encoded again, unless the student has another
vocabulary (`ds_seq.distill.vocabularies`). Batches are made from the whole
split and then distributed over the ranks, so that their content, and every digit of the result, is
the same for any number of ranks. Finished batches are recorded in a journal: after an interruption
the same command resumes with the others.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ds_seq import distributed
from ds_seq.activity import finished
from ds_seq.data.progress import Progress
from ds_seq.data.shards import ShardReader
from ds_seq.data.source import SOURCE
from ds_seq.distill.assembly import Sources, Summary, assemble, copy_rest, workers_for
from ds_seq.distill.filters import Filters
from ds_seq.distill.journal import JournalWriter
from ds_seq.distill.vocabularies import Retokenized
from ds_seq.distill.work_folder import Settings, WorkFolder, data_fingerprint
from ds_seq.distributed import World
from ds_seq.errors import UserError
from ds_seq.generation.build import BATCH_SIZE, Decoding
from ds_seq.generation.translate import cut_batches, search_batches
from ds_seq.generation.workers import default_workers
from ds_seq.runs.card import StoredRun
from ds_seq.runs.open import load_packed, weights_fingerprint
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.text.tokenizer import Tokenizers


@dataclass(frozen=True)
class Labeling:
    """Settings of a labeling job, the same on every rank except for the device.

    Attributes:
        teacher: path of the teacher's run or export.
        run: the opened run or export.
        data: folder of the shards.
        split: name of the split.
        reader: reader of the split.
        decoding: search that returns `num_best` hypotheses.
        num_best: number of hypotheses per source, each of which becomes a separate pair.
        filters: filters that a hypothesis must pass.
        original: number of times to add every original pair.
        device: device of the teacher.
        dtype: name of the teacher's number format.
        expert_parallel: number of ranks that share the teacher's experts.
        tags: ids of tags that the teacher reads before sources, by their rows.
        retokenized: the text of the shards in the teacher's ids; None: they have its vocabulary.
        joint_vocab: whether source and target of the shards share a vocabulary.
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
    tags: Mapping[range, int] = field(default_factory=dict)
    retokenized: Retokenized | None = None
    joint_vocab: bool = True

    @property
    def tokenizers(self) -> Tokenizers:
        """Tokenizers of the shards."""
        return self.run.tokenizers if self.retokenized is None else self.retokenized.student

    @property
    def lengths(self) -> NDArray[np.integer]:
        """Lengths (N,) of the sources as the teacher reads them."""
        text = self.retokenized
        own = self.reader.lengths[:, SOURCE] if text is None else text.lengths
        lengths = own.astype(np.int64)
        for rows in self.tags:
            lengths[rows.start : rows.stop] += 1
        return np.minimum(lengths, self._longest) if self._cuts else lengths

    def source(self, row: int) -> list[int]:
        """Return the ids of a source as the teacher reads it."""
        other = self.retokenized
        text = self.reader[row][0].tolist() if other is None else other.source(row)
        ids = [*(tag for rows, tag in self.tags.items() if row in rows), *text]
        is_cut = self._cuts and len(ids) > self._longest
        return [*ids[: self._longest - 1], ids[-1]] if is_cut else ids

    @property
    def _longest(self) -> int:
        return self.decoding.limits.max_source_length

    @property
    def _cuts(self) -> bool:
        """Whether the teacher was trained on the beginnings of long sources."""
        return self.run.card.longest_source < self.run.card.max_positions

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Mask (N,) of sources that are neither empty nor too long."""
        has_text = self.reader.lengths[:, SOURCE] > 1
        return has_text & (self.lengths <= self._longest)

    def labels(self, results: Sequence[Sequence[Hypothesis]]) -> Sequence[Sequence[Hypothesis]]:
        """Return the hypotheses of some sentences in the ids of the shards."""
        text = self.retokenized
        return results if text is None else [[*map(text.label, beam)] for beam in results]

    @property
    def num_usable(self) -> int:
        """Number of sources to translate."""
        return int(self.usable.sum())


def begin(job: Labeling, work: WorkFolder) -> NDArray[np.int64]:
    """Record the settings, or compare them with recorded ones; return the finished sentences.

    Raises:
        UserError: the work was begun with other settings, or another process is doing it.
    """
    search = job.decoding.settings.model_dump(exclude=set(BATCH_SIZE))
    settings: Settings = {
        "teacher": weights_fingerprint(job.run),
        "data": data_fingerprint(job.data, job.split),
        "split": job.split,
        "dtype": job.dtype,
        "n-best": job.num_best,
        **(_tag_settings(job.tags)),
        **({} if job.retokenized is None else {"vocabulary": job.tokenizers.fingerprint}),
        **{name.replace("_", "-"): value for name, value in search.items()},
    }
    paths = {"checkpoint": job.run.source, "data": job.data}
    done = work.begin(settings, {name: str(path.resolve()) for name, path in paths.items()})
    if (done >= len(job.reader)).any():
        raise UserError(
            f"{work.journal(0).parent}: is damaged (it has a translation of pair "
            f"{int(done.max()) + 1:,} of {len(job.reader):,}); remove it"
        )
    return done


def _tag_settings(tags: Mapping[range, int]) -> Settings:
    text = " ".join(f"{rows.start}:{tag}" for rows, tag in tags.items())
    return {"tags": text} if tags else {}


def decode(job: Labeling, work: WorkFolder, done: NDArray[np.int64], world: World) -> float:
    """Translate this rank's share of the remaining sentences; a collective.

    Args:
        job: settings of the job.
        work: folder that receives the hypotheses.
        done: indices of finished sentences, as returned by `begin`, on every rank.
        world: this rank and the number of ranks.

    Returns:
        The seconds until all ranks were done.
    """
    reader = job.reader
    usable = np.flatnonzero(job.usable)
    remaining = np.ones(len(reader), bool)
    remaining[done] = False
    lengths = job.lengths[usable]
    batches = [usable[batch] for batch in cut_batches(lengths, job.decoding.limits)]
    batches = [left for batch in batches if len(left := batch[remaining[batch]])]
    if not batches:  # on all ranks
        return 0.0
    share = batches[world.rank :: world.size]
    with distributed.shared_errors():
        # by path: "best" may have changed if the teacher is still being trained
        checkpoint = job.run.checkpoint
        run = load_packed(job.teacher, checkpoint, job.dtype, job.device, job.expert_parallel)
        writer = JournalWriter(work.journal(world.rank), job.tokenizers.target.symbols.eos)
    any_rank = distributed.any_rank if job.expert_parallel > 1 else None
    started = time.monotonic()
    bar = Progress("pseudo-label", sum(map(len, share)), "sentences") if world.is_first else None
    with writer, bar or nullcontext():
        searched = search_batches(
            run.seq2seq,
            job.decoding.search,
            share,
            job.source,
            job.device,
            any_rank,
            default_workers(job.device),
        )
        for number, (batch, hypotheses) in enumerate(searched, 1):
            writer.append(batch, job.labels(hypotheses))
            finished("translation", number)
            if bar is not None:
                bar(len(batch))
    distributed.barrier()
    return time.monotonic() - started


def finish(job: Labeling, work: WorkFolder, out: Path) -> Summary:
    """Write the new data folder `out` from the results of all ranks; remove the work folder."""
    copy_rest(job.data, out, job.split, job.tokenizers, job.joint_vocab)
    sources = Sources(job.reader, work.journals(), job.tokenizers, job.teacher)
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
