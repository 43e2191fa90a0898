"""Make a student for fine-tuning: its layers, its merged experts, and its experiment.

Shrink and fine-tune (Shleifer and Rush, 2020, "Pre-trained Summarization Distillation",
arXiv:2010.13002). The student is an ordinary export: it can translate as it is, and
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
from ds_seq.config.fewer_layers import CopiedLayers
from ds_seq.config.model import ModelConfig
from ds_seq.data.batch import Batch, ParallelDataset
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.progress import Progress
from ds_seq.data.source import TARGET
from ds_seq.names import STACKS
from ds_seq.runs.card import LoadedRun
from ds_seq.runs.formats.ds_seq import EXPORT_SUFFIX
from ds_seq.surgery.merge import ExpertUse, equal_use, measure_use, merge_experts
from ds_seq.surgery.prune import moe_layers
from ds_seq.surgery.shrink import make_student

STUDENT_KEY = "ds_seq.student"
"""Key in the header of the weights file. Its value is JSON: the path of the `teacher`'s weights,
the copied layers of `encoder` and `decoder`, and each expert's share in `merged` layers."""


def fine_tuning(student: ExperimentConfig, out: Path) -> ExperimentConfig:
    """Return the experiment that fine-tunes the student in `out`, in a new run folder."""
    stem = out.name.removesuffix(EXPORT_SUFFIX)
    name = re.sub(r"[^\w.+-]", "_", stem) + "-tuned"
    start = {"init_from": str(out), "init_checkpoint": "best", "upcycle_noise": 0.0}
    train = student.train.model_copy(update=start)
    return student.model_copy(update={"name": name, "run_dir": None, "train": train})


class Sample(NamedTuple):
    """A sample of the pairs of a dataset."""

    dataset: ParallelDataset
    pairs: NDArray[np.int64]


def spread_sample(dataset: ParallelDataset, max_tokens: int) -> Sample:
    """Sample pairs, evenly spread over a dataset, for measuring experts.

    Args:
        dataset: pairs with the model's vocabulary.
        max_tokens: approximate number of target tokens, at least 1.
    """
    tokens = int(dataset.lengths[:, TARGET].sum())
    count = min(max(len(dataset) * max_tokens // tokens, 1), len(dataset))
    spread = (np.arange(count) + 0.5) * len(dataset) / count
    return Sample(dataset, spread.astype(np.int64))


class Student(NamedTuple):
    """A student model and how it was made."""

    model: nn.Module
    """The model, on the CPU, in float32."""
    shares: dict[str, list[float]]
    """Share of each expert in the merged layers, by name of the layer."""
    notes: dict[str, str]
    """Metadata for the header of the weights file."""


def student_of(
    teacher: LoadedRun,
    config: ExperimentConfig,
    layers: CopiedLayers,
    sample: Sample | None,
    device: torch.device,
) -> Student:
    """Make the student that `config` describes.

    Args:
        teacher: the teacher, in float32.
        config: experiment of the student.
        layers: the teacher's layers to copy.
        sample: pairs on which to measure the experts to merge; None: do not merge.
        device: device of the teacher.

    Raises:
        UserError: the teacher is not a Transformer of ds_seq.
    """
    use = {} if sample is None else _measure(teacher, sample, layers, device)
    return _with_merged(teacher, config, layers, use)


def dense_of(
    teacher: LoadedRun, config: ExperimentConfig, sample: Sample | None, device: torch.device
) -> Student:
    """Merge the experts of each layer of a model, and keep all layers.

    Args:
        teacher: a model with experts, in float32.
        config: experiment of the dense model, see `ds_seq.surgery.shrink.student_config`.
        sample: pairs on which to measure the experts; None: all count the same.
        device: device of the teacher.

    Raises:
        UserError: the model is not a Transformer of ds_seq, or its experts have to be measured.
    """
    layers = all_layers(config.model)
    if sample is None:
        use = {name: equal_use(layer) for name, layer in moe_layers(teacher.model).items()}
    else:
        use = _measure(teacher, sample, layers, device)
    return _with_merged(teacher, config, layers, use)


def all_layers(model: ModelConfig) -> CopiedLayers:
    """Return the indices of all layers of a model."""
    return CopiedLayers(*(list(range(model.layers_of(stack))) for stack in STACKS))


def _with_merged(
    teacher: LoadedRun, config: ExperimentConfig, layers: CopiedLayers, use: dict[str, ExpertUse]
) -> Student:
    experts = moe_layers(teacher.model)
    merged = {name: merge_experts(experts[name], counts) for name, counts in use.items()}
    model = make_student(teacher.model, config, teacher.tokenizers.sizes, layers, merged)
    shares = {name: counts.shares.tolist() for name, counts in use.items()}
    record = {"teacher": str(teacher.source), **layers._asdict(), "merged": shares}
    return Student(model, shares, {STUDENT_KEY: json.dumps(record)})


def _measure(
    run: LoadedRun, sample: Sample, layers: CopiedLayers, device: torch.device
) -> dict[str, ExpertUse]:
    """Measure the use of the experts in the copied layers, by name of the layer."""
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
