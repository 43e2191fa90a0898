"""Find the size of batches by trial: `train.max_tokens: auto`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ds_seq import distributed
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.criterions.base import Criterion, Current
from ds_seq.data.source import Dataset
from ds_seq.data.splitting import repeated
from ds_seq.errors import UserError
from ds_seq.generation.memory import is_out_of_memory
from ds_seq.tasks.base import Task
from ds_seq.training.engine import Engine

_FIRST = 512  # tokens
_GAIN = 1.05  # a batch twice as large must be this much faster per token
_SHARE = 0.9  # of the memory that may be used
_OPTIMIZER_BYTES = 8  # per weight, which the first update allocates


def with_batch_size(
    config: ExperimentConfig,
    engine: Engine,
    criterion: Criterion,
    task: Task,
    dataset: Dataset,
    progress: dict[str, Any] | None,
) -> ExperimentConfig:
    """Return an experiment with a number for `train.max_tokens`; a collective.

    A run that resumes keeps the number that it has begun with.

    Args:
        config: the experiment.
        engine: the model under DeepSpeed; it is not changed.
        criterion: the loss.
        task: the task, which makes batches.
        dataset: the training examples.
        progress: state of the trainer in the checkpoint; None at the start.

    Raises:
        UserError: not even the smallest batch has room, or the engine cannot be tried.
    """
    if config.train.max_tokens != "auto":
        return config
    tokens = None if progress is None else progress.get("max_tokens")
    if tokens is None:
        tokens = find_batch_size(engine, criterion, task, dataset, config.train.max_sentences)
    train = config.train.model_copy(update={"max_tokens": int(tokens)})
    return config.model_copy(update={"train": train})


def find_batch_size(
    engine: Engine, criterion: Criterion, task: Task, dataset: Dataset, cap: int | None
) -> int:
    """Return the tokens beyond which batches have no room or are no faster; a collective.

    Forward and backward of the longest sentences are run with batches of doubling size. On a GPU
    the largest that leaves room for the optimizer's state is best; on a CPU the smallest that is
    nearly as fast per token as the next.

    Args:
        engine: the model under DeepSpeed; neither its weights nor its gradients are changed.
        criterion: the loss.
        task: makes batches.
        dataset: the examples.
        cap: maximum number of sentences; None: no limit.

    Raises:
        UserError: not even the smallest batch has room, or the engine cannot be tried.
    """
    if engine.forward_is_collective:
        raise UserError(
            "train.max_tokens: auto does not work where ranks share experts or weights "
            "(train.expert_parallel above 1, ZeRO stage 3): if one is out of memory, the others "
            "wait; give a number"
        )
    best, best_speed = None, 0.0
    was_training = criterion.training
    criterion.train(False)  # queues of losses stay as they are
    try:
        for tokens, indices in _trials(dataset, cap):
            seconds = _try(engine, criterion, task, dataset, indices)
            fits = not distributed.any_rank(seconds is None)
            speed = tokens / _mean_over_ranks(seconds or 0.0) if fits else 0.0
            if not fits or (engine.device.type == "cpu" and speed < _GAIN * best_speed):
                break
            best, best_speed = tokens, speed
    finally:
        criterion.train(was_training)
    if best is None:
        raise UserError(
            "train.max_tokens: auto: out of memory with the longest sentences; lower "
            "data.max_source_length and data.max_target_length, or shrink the model"
        )
    return best


def _trials(dataset: Dataset, cap: int | None) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield sizes in tokens, and the longest examples that make such a batch."""
    longest = np.asarray(dataset.lengths).max(axis=1).astype(np.int64)
    most = int(longest.max())
    order = np.argsort(-longest, kind="stable")
    tokens = max(_FIRST, most)
    while True:
        size = min(tokens // most, len(order), cap or len(order))
        yield tokens, order[:size]
        if size in (len(order), cap):
            return
        tokens *= 2


def _try(
    engine: Engine, criterion: Criterion, task: Task, dataset: Dataset, indices: NDArray[np.int64]
) -> float | None:
    """Return the seconds of forward and backward, or None if there is no room."""
    weights = [weight for weight in engine.module.parameters() if weight.requires_grad]
    is_cuda = engine.device.type == "cuda"
    engine.module.train()
    try:
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(engine.device)
        batch = task.collate(dataset, indices).to(engine.device)
        seconds = 0.0
        for _ in range(2):  # the first one also prepares kernels
            start = time.monotonic()
            # the module itself and `grad`: DeepSpeed's engine has hooks that count backwards, and
            # gradients that stay
            passes = criterion.num_passes
            current = Current(engine.module, 0)
            given = criterion.prepare(batch, current) if criterion.prepares else batch
            read = given if passes == 1 else repeated(given, passes)
            loss = criterion(engine.module(read.inputs, criterion.capture), given)
            torch.autograd.grad(loss.total, weights, allow_unused=True)
            if is_cuda:
                torch.cuda.synchronize(engine.device)
            seconds = time.monotonic() - start
        return seconds if not is_cuda or _has_room(engine.device, weights) else None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        if is_cuda:
            torch.cuda.empty_cache()


def _has_room(device: torch.device, weights: list[torch.nn.Parameter]) -> bool:
    """Return whether the optimizer's state will fit besides the batch."""
    state = _OPTIMIZER_BYTES * sum(weight.numel() for weight in weights)
    total = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.max_memory_reserved(device) + state < _SHARE * total


def _mean_over_ranks(seconds: float) -> float:
    """Return the mean, so that all ranks decide alike."""
    mean = float(distributed.sum_over_ranks(torch.tensor([seconds], dtype=torch.float64))[0])
    return max(mean / distributed.world_size(), 1e-9)
