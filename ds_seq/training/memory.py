"""What to do when a training runs out of memory."""

from __future__ import annotations

from collections.abc import Sequence

from ds_seq import distributed
from ds_seq.config.train import TrainConfig
from ds_seq.data.batch import Batch
from ds_seq.errors import UserError
from ds_seq.generation.memory import is_out_of_memory

_SMALLER_STATE = (
    "let DeepSpeed partition or offload more (train.deepspeed: configs/ds_config/zero2.json, "
    "zero3.json, zero2_offload.json), set train.precision to bf16"
)


def explain(error: RuntimeError | MemoryError, where: str, advice: str) -> None:
    """Raise a better error if `error` says that memory has run out; otherwise do nothing.

    Only this rank has it; the others are in the middle of their work, and the launcher ends them.

    Args:
        error: what was raised.
        where: what needed the memory, after "out of memory".
        advice: what to change.

    Raises:
        UserError: memory has run out.
    """
    if is_out_of_memory(error):
        rank = f"rank {distributed.rank()}: " if distributed.world_size() > 1 else ""
        raise UserError(f"{rank}out of memory {where}; {advice}") from error


BUILDING_ADVICE = f"{_SMALLER_STATE}, spread experts (train.expert_parallel), or shrink the model"
"""Advice for the time before the first batch."""

TEACHER_ADVICE = (
    "set the criterion's teacher_precision to bf16, or spread the teacher over the ranks "
    "(teacher_zero3, teacher_expert_parallel), or run it in advance (ds-seq teacher-cache)"
)


def update_advice(config: TrainConfig) -> str:
    """Return advice for an update; batches count most."""
    how = f", and raise train.accumulate, which is {config.accumulate}, by the same factor"
    if config.batches_per_update is not None:
        how = f", and raise train.batches_per_update, which is {config.batches_per_update}, alike"
    if config.global_batch_tokens is not None:
        how = ""
    advice = (
        f"lower train.max_tokens, which is {config.max_tokens}{how}: the updates stay the same. Or "
        f"{_SMALLER_STATE}, or lower data.max_source_length and data.max_target_length"
    )
    if config.expert_parallel > 1 and config.on_out_of_memory != "stop":
        advice += (
            ". Such a batch is not split here, because ranks that share experts wait for each "
            "other in the middle of it; train.largest_first shows a lack of memory at the start"
        )
    return advice


def validation_advice(config: TrainConfig) -> str:
    """Return advice for a validation, which computes losses and translates."""
    return (
        f"lower train.max_tokens, which is {config.max_tokens}, for the loss, or "
        "generation.max_tokens and generation.beam for the translations"
    )


def largest(batches: Sequence[Batch]) -> str:
    """Describe the batch with the most target tokens, padding included."""
    batch = max(batches, key=lambda batch: batch.labels.numel())
    rows, length = batch.labels.shape
    return f"{rows} sentences of {length} target tokens, padding included"
