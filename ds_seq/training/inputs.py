"""The data of a training: its data sets, what they must have, and the batches of a rank."""

from __future__ import annotations

import atexit
import secrets
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from ds_seq import distributed
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.data.batch import Batch, ParallelDataset
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.corpora import CorporaDataset
from ds_seq.data.expected import raw_files
from ds_seq.data.node_share import NodeShare
from ds_seq.data.source import ChangingDataset, Dataset, untagged_rows
from ds_seq.data.stream import BatchStream
from ds_seq.data.text import TextDataset
from ds_seq.distributed import World
from ds_seq.errors import UserError
from ds_seq.tasks.base import Task
from ds_seq.tasks.mix import build_mix, collate_in, untagged_parts
from ds_seq.text.lines import decode_lines, read_blocks

_MOST_EMPTY = 0.5
_LINES = 10_000  # read at a time
_LEAST_SHARED = 1_000_000  # pairs; fewer are ordered faster than they are shared


def validation_set(task: Task, config: ExperimentConfig) -> Dataset | None:
    if config.train.validate_every is None:
        return None
    if config.validation.metrics:
        for text in raw_files(config.data, "valid", must_exist=False):
            # report unreadable text early, not in a validation
            deque(map(decode_lines, read_blocks([text], _LINES)), maxlen=0)
    return task.dataset("valid")


def check_tags(
    config: ExperimentConfig, task: Task, datasets: Mapping[str, Dataset | None]
) -> None:
    """Refuse sources without a tag for a router that chooses experts by it."""
    tags = task.tokenizers.source.tag_ids
    for name, dataset in datasets.items() if config.routes_by_language else ():
        if not isinstance(dataset, ParallelDataset):
            continue
        parts: list[range | None] = [None]
        if isinstance(dataset, CorporaDataset):  # tags of the experiment are not in the shards
            parts = [part.rows for part in untagged_parts(dataset, tags)]
        for rows in parts:
            untagged, size = untagged_rows(dataset.source, tags, rows)
            if len(untagged):
                raise UserError(
                    "model.moe.router: language chooses experts by the tag at the start of a "
                    f"source, but {len(untagged):,} of {size:,} {name} sources begin with none of "
                    f"data.vocab.user_symbols (the first is pair {untagged[0] + 1:,}); add the "
                    "tags to the text or to data.mixing.language_tags, or choose another router"
                )


def open_share(dataset: Dataset, world: World) -> NodeShare | None:
    """Let the ranks of each machine share the order of a large dataset; a collective."""
    if world.size == 1 or len(dataset) < _LEAST_SHARED:
        return None
    token = distributed.broadcast_object(secrets.token_hex(8))
    if world.local_size == 1:
        return None
    share = NodeShare(token, makes=world.local_rank == 0)
    atexit.register(share.close)
    return share


def train_sampler(
    config: ExperimentConfig, dataset: Dataset, rank: int, world_size: int
) -> TokenBatchSampler:
    """Return the sampler of training pairs of a rank."""
    train = config.train
    return TokenBatchSampler(
        dataset.lengths,
        config.batch_tokens,
        train.max_sentences,
        seed=train.seed,
        rank=rank,
        world_size=world_size,
        accumulate=train.accumulate_on(world_size),
        group=train.group(world_size),
        multiple=train.sentence_multiple,
        is_sortish=train.batch_order == "sortish",
        starts_with_largest=train.largest_first,
    )


def train_batches(
    config: ExperimentConfig, task: Task, dataset: Dataset, world: World, share: NodeShare | None
) -> BatchStream:
    train = config.train
    sampler = train_sampler(config, dataset, world.rank, world.size)
    if share is not None:
        sampler = sampler.shared(share)
    mix, in_epoch = None, None
    if isinstance(dataset, ChangingDataset):
        mix = build_mix(config.data, train.seed, dataset, sampler)
        in_epoch = collate_in(task, dataset, train.seed)
    return BatchStream(
        partial(task.collate, dataset),
        sampler,
        num_prefetch=train.num_prefetch,
        pin=world.device.type == "cuda",
        max_epochs=train.max_epochs,
        mix=mix,
        collate_in=in_epoch,
    )


def empty_batches(batches: BatchStream) -> list[str]:
    """Return a warning if most batches of an epoch are empty, because it is too short."""
    share = batches.empty_share
    if share <= _MOST_EMPTY:
        return []
    return [
        f"{share:.0%} of the batches of an epoch are empty: it has too few for an update of "
        "train.accumulate batches per process; lower train.accumulate or train.max_tokens"
    ]


def valid_batches(
    config: ExperimentConfig, task: Task, dataset: Dataset | None, world: World
) -> Iterator[Batch]:
    """Yield this rank's validation batches, the same number on every rank.

    A batch has pairs of one file only, so that the loss of each file is known.
    """
    assert dataset is not None, "validation needs train.validate_every"
    parts = [np.arange(len(dataset))]
    if isinstance(dataset, ParallelDataset | TextDataset):
        parts = dataset.by_file()
    for part in parts:
        if len(part) == 0:  # all of its pairs are too long
            continue
        sampler = TokenBatchSampler(
            dataset.lengths[part],
            config.batch_tokens,
            config.train.max_sentences,
            rank=world.rank,
            world_size=world.size,
            accumulate=1,
        )
        for indices in sampler.epoch(0):
            yield task.collate(dataset, part[indices])
