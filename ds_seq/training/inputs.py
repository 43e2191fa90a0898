"""The data of a training: its data sets, what they must have, and the batches of a rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.data.batch import Batch, ParallelDataset
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.expected import raw_files
from ds_seq.data.source import Dataset, untagged_rows
from ds_seq.data.stream import BatchStream
from ds_seq.distributed import World
from ds_seq.errors import UserError
from ds_seq.tasks.base import Task
from ds_seq.text.lines import read_pairs


def validation_set(task: Task, config: ExperimentConfig) -> Dataset | None:
    if config.train.validate_every is None:
        return None
    if config.validation.metrics:
        for text in raw_files(config.data, "valid", must_exist=False):
            read_pairs(text)  # report unreadable text early, not in a validation
    return task.dataset("valid")


def check_tags(
    config: ExperimentConfig, task: Task, datasets: Mapping[str, Dataset | None]
) -> None:
    """Refuse sources without a tag for a router that chooses experts by it."""
    for name, dataset in datasets.items() if config.routes_by_language else ():
        if not isinstance(dataset, ParallelDataset):
            continue
        untagged, size = untagged_rows(dataset.source, task.tokenizers.source.tag_ids)
        if len(untagged):
            raise UserError(
                "model.moe.router: language chooses experts by the tag at the start of a source, "
                f"but {len(untagged):,} of {size:,} {name} sources begin with none of "
                f"data.vocab.user_symbols (the first is pair {untagged[0] + 1:,}); add the tags to "
                "the text, or choose another router"
            )


def train_batches(
    config: ExperimentConfig, task: Task, dataset: Dataset, world: World
) -> BatchStream:
    train = config.train
    sampler = TokenBatchSampler(
        dataset.lengths,
        train.max_tokens,
        train.max_sentences,
        seed=train.seed,
        rank=world.rank,
        world_size=world.size,
        accumulate=train.accumulate,
    )
    return BatchStream(
        partial(task.collate, dataset),
        sampler,
        num_prefetch=train.num_prefetch,
        pin=world.device.type == "cuda",
        max_epochs=train.max_epochs,
    )


def valid_batches(
    config: ExperimentConfig, task: Task, dataset: Dataset | None, world: World
) -> Iterator[Batch]:
    """Yield this rank's validation batches, the same number on every rank.

    A batch has pairs of one file only, so that the loss of each file is known.
    """
    assert dataset is not None, "validation needs train.validate_every"
    parts = [np.arange(len(dataset))]
    if isinstance(dataset, ParallelDataset):
        parts = dataset.by_file()
    for part in parts:
        if len(part) == 0:  # all of its pairs are too long
            continue
        sampler = TokenBatchSampler(
            dataset.lengths[part],
            config.train.max_tokens,
            config.train.max_sentences,
            rank=world.rank,
            world_size=world.size,
            accumulate=1,
        )
        for indices in sampler.epoch(0):
            yield task.collate(dataset, part[indices])
