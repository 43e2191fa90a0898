"""A student for fine-tuning: which layers, how its teacher's experts are merged, what trains it.

Shrink and fine-tune (Shleifer and Rush, 2020, "Pre-trained Summarization Distillation",
arXiv:2010.13002). The student is an export like any other: it translates as it is, and
`config.yaml` in its folder is the experiment of its fine-tuning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.data.batch import Batch, ParallelDataset
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.progress import Progress
from ds_seq.data.source import TARGET, Source
from ds_seq.names import STACKS
from ds_seq.runs.card import LoadedRun, ModelCard
from ds_seq.runs.formats.ds_seq import EXPORT_SUFFIX
from ds_seq.surgery.merge import ExpertUse, measure_use, merge_experts
from ds_seq.surgery.prune import moe_layers
from ds_seq.surgery.shrink import CopiedLayers, make_student

STUDENT_KEY = "ds_seq.student"
"""In the header of the weights file: JSON with the ``teacher``'s weights, the layers that those of
``encoder`` and ``decoder`` are copies of, and the share of each expert in layers ``merged``."""


def fine_tuning(student: ExperimentConfig, out: Path) -> ExperimentConfig:
    """The experiment that starts with the student in ``out``; its run folder is another one."""
    stem = out.name.removesuffix(EXPORT_SUFFIX)
    name = re.sub(r"[^\w.+-]", "_", stem) + "-tuned"
    start = {"init_from": str(out), "init_checkpoint": "best", "upcycle_noise": 0.0}
    train = student.train.model_copy(update=start)
    return student.model_copy(update={"name": name, "run_dir": None, "train": train})


class Sample(NamedTuple):
    """Some pairs of a data set."""

    dataset: ParallelDataset
    pairs: NDArray[np.int64]


def spread_sample(source: Source, card: ModelCard, max_tokens: int) -> Sample:
    """Pairs, evenly spread over a source, on which experts are measured.

    Args:
        source: made with the vocabulary of the model.
        card: of the model.
        max_tokens: about so many target tokens, at least 1.
    """
    sizes = card.sizes
    dataset = ParallelDataset(source, sizes.max_source_length, sizes.max_target_length)
    tokens = int(dataset.lengths[:, TARGET].sum())
    count = min(max(len(dataset) * max_tokens // tokens, 1), len(dataset))
    spread = (np.arange(count) + 0.5) * len(dataset) / count
    return Sample(dataset, spread.astype(np.int64))


class Student(NamedTuple):
    """A model made of another one."""

    model: nn.Module
    """On the CPU, in float32."""
    shares: dict[str, list[float]]
    """Of each expert in the layers that were merged, by name of the layer."""
    notes: dict[str, str]
    """For the header of its weights file."""


def student_of(
    teacher: LoadedRun,
    config: ExperimentConfig,
    layers: CopiedLayers,
    sample: Sample | None,
    device: torch.device,
) -> Student:
    """Make the student that ``config`` describes.

    Args:
        teacher: in float32.
        config: of the student.
        layers: what it is made of.
        sample: what the experts are measured on if they are to be merged; None: they stay.
        device: where the teacher is.

    Raises:
        UserError: the teacher is no Transformer of ds_seq.
    """
    use = {} if sample is None else _measure(teacher, sample, layers, device)
    experts = moe_layers(teacher.model)
    merged = {name: merge_experts(experts[name], counts) for name, counts in use.items()}
    model = make_student(teacher.model, config, teacher.tokenizers.size, layers, merged)
    shares = {name: counts.shares.tolist() for name, counts in use.items()}
    record = {"teacher": str(teacher.source), **layers._asdict(), "merged": shares}
    return Student(model, shares, {STUDENT_KEY: json.dumps(record)})


def _measure(
    run: LoadedRun, sample: Sample, layers: CopiedLayers, device: torch.device
) -> dict[str, ExpertUse]:
    """How the experts of the layers that are copied are used, by name of the layer."""
    sparse = {stack: run.model_config.moe_layers(stack) for stack in STACKS}
    names = [
        f"{stack}.layers.{layer}.feed_forward"
        for stack in STACKS
        for layer in sparse[stack]
        if layer in layers.of(stack)
    ]
    batches = (batch.to(device) for batch in _batches(run, sample))
    return measure_use(run.model, batches, names) if names else {}


def _batches(run: LoadedRun, sample: Sample) -> Iterator[Batch]:
    dataset, pairs = sample
    sizes = run.card.sizes
    lengths = dataset.lengths[pairs]
    sampler = TokenBatchSampler(lengths, sizes.max_tokens, sizes.max_sentences, accumulate=1)
    with Progress("measure experts", len(pairs)) as progress:
        for indices in sampler.epoch(0):
            yield dataset.collate(pairs[indices], run.tokenizers.symbols)
            progress(len(indices))
