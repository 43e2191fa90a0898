"""Memory of one device: the most that an update of a training needs at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ds_seq.config.cost.batch import WIDTH, Activations, BatchShape, device
from ds_seq.config.cost.kinds import CostedConfig, kept_by
from ds_seq.config.cost.states import Buffers, Layout, States, parameters, states
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.model.transformer import TransformerConfig

_MOST_TOKENS = 2**24
_BLOCKS = 3  # of the loss: probabilities, their gradient, and what is copied from it


@dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
        states: what does not depend on the batch.
        activations: what layers and the ends of the stacks keep for the backward pass.
        logits: scores over the vocabulary, and their gradients.
        peak: the most at a time.
    """

    states: States
    activations: float
    logits: float
    peak: float


def memory(
    config: ExperimentConfig,
    model: CostedConfig,
    layout: Layout,
    buffers: Buffers,
    batch: BatchShape,
    kind: str = "gpu",
) -> Memory:
    """Return what one device needs.

    Args:
        config: the experiment.
        model: its model.
        layout: where it runs.
        buffers: sizes of DeepSpeed's buffers.
        batch: the largest batch.
        kind: kind of device, `gpu` or `cpu`.
    """
    vocab = config.data.vocab
    size = model.num_params(vocab.target_side.size, vocab.source_side.size)
    counts = parameters(config, model, size, layout, buffers.persistent)
    held = states(config, counts, layout, buffers)
    place = device(kind, config.train.precision)
    read = BatchShape(batch.sentences * config.num_passes, batch.length)
    kept = kept_by(model, read, vocab.target_side.size, place, layout.expert_parallel)
    table = counts.table * place.width
    block = min(place.loss_block, read.tokens * vocab.target_side.size) * _BLOCKS * WIDTH["fp32"]
    forward = _forward_bytes(model, kept)
    always = held.weights + held.optimizer
    during = always + held.buckets + held.gathered
    peak = max(
        # the loss, and the start of the backward pass: the gradient of the scores, and those that
        # follow from it
        during + held.kept_gradients + forward + 2 * kept.logits + max(block, kept.hidden + table),
        during + max(held.kept_gradients, _partial(held)) + _second_phase(model, kept),
        # it ends, and gradients are exchanged
        during + held.gradients + held.reducing,
        always + held.gradients + held.stepping,
    )
    return Memory(held, forward, 2 * kept.logits, peak)


def _partial(held: States) -> float:
    """Return the gradients that are there in the middle of the backward pass."""
    return 0.5 * (held.kept_gradients + held.gradients)


def _forward_bytes(model: CostedConfig, kept: Activations) -> float:
    """Return what is kept when the forward pass ends."""
    if not model.activation_checkpointing:
        return sum(layer.kept for layer in kept.layers) + kept.rest
    return sum(layer.entry for layer in kept.layers) + kept.rest


def _second_phase(model: CostedConfig, kept: Activations) -> float:
    """Return what is kept later in the backward pass, where that may be more.

    With recomputation, the scores' gradient has gone, and a layer is there as a whole; else the
    decoder's layers have gone.
    """
    if isinstance(model, TransformerConfig) and model.activation_checkpointing:
        largest = max(layer.kept for layer in kept.layers)
        # and gradients of its widest tensors
        widest = kept.hidden * (1 + model.inner_width(model.ffn_dim) / model.d_model)
        return _forward_bytes(model, kept) + kept.logits + largest + widest
    return sum(layer.kept for layer in kept.layers if layer.stack == "encoder") + kept.logits


def largest_batch(
    config: ExperimentConfig,
    model: CostedConfig,
    layout: Layout,
    buffers: Buffers,
    length: int,
    limit: float,
) -> int:
    """Return the largest `train.max_tokens` that fits into `limit` bytes; 0: none does."""

    def fits(sentences: int) -> bool:
        found = memory(config, model, layout, buffers, BatchShape(sentences, length))
        return found.peak <= limit

    low, high = 0, 1
    while high * length <= _MOST_TOKENS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * length


def with_stage(buffers: Buffers, stage: int) -> Buffers:
    """Return the buffers of another stage, which has the same bucket."""
    return replace(buffers, num_buckets=1 if stage in (0, 3) else buffers.num_buckets)
