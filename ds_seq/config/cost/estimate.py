"""All costs of a run together, for one layout and for others that the same devices could have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ds_seq.config.cost.batch import BatchShape
from ds_seq.config.cost.kinds import CostedConfig, SearchBytes, is_costed, search_bytes
from ds_seq.config.cost.memory import Memory, largest_batch, memory, with_stage
from ds_seq.config.cost.states import Buffers, Layout, parameters
from ds_seq.config.cost.traffic import Collective, traffic
from ds_seq.config.deepspeed import zero_stage
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.flops import forward_flops, training_flops
from ds_seq.config.model.section import Flops, LengthSums, ModelSize
from ds_seq.config.model.transformer import TransformerConfig

USUAL_LENGTH = 32
"""Tokens of a sentence, where the data does not tell."""
STAGES = (0, 1, 2, 3)


class LayoutCosts(NamedTuple):
    """What one layout costs."""

    layout: Layout
    states: float
    """Bytes of a device besides those of a batch, at the end of a backward pass."""
    peak: float
    """Bytes of a device, at most."""
    largest: int | None
    """Largest `train.max_tokens` that fits; None: no limit was given."""
    sent: float
    """Bytes that a rank sends per update."""


@dataclass(frozen=True)
class Estimate:
    """Costs of an experiment.

    Attributes:
        config: the experiment.
        model: its model.
        layout: where it runs.
        buffers: sizes of DeepSpeed's buffers.
        batch: each batch of a rank.
        limit: bytes of a device; None if not given.
    """

    config: ExperimentConfig
    model: CostedConfig
    layout: Layout
    buffers: Buffers
    batch: BatchShape
    limit: float | None = None

    @cached_property
    def size(self) -> ModelSize:
        """Number of parameters."""
        vocab = self.config.data.vocab
        return self.model.num_params(vocab.target_side.size, vocab.source_side.size)

    @cached_property
    def memory(self) -> Memory:
        """Memory of a device."""
        return self._memory(self.model, self.layout)

    @cached_property
    def recomputed(self) -> Memory | None:
        """Memory with `model.activation_checkpointing`; None for a model without it."""
        model = self._recomputing
        return None if model is None else self._memory(model, self.layout)

    @property
    def _recomputing(self) -> TransformerConfig | None:
        if not isinstance(self.model, TransformerConfig):
            return None
        return self.model.model_copy(update={"activation_checkpointing": True})

    @cached_property
    def collectives(self) -> list[Collective]:
        """Collectives of an update of a rank."""
        return self._traffic(self.layout)

    @property
    def flops(self) -> tuple[Flops, Flops]:
        """Operations of a forward pass, and of forward and backward."""
        vocab = self.config.data.vocab.target_side.size
        forward = forward_flops(self.model, vocab)
        training = training_flops(self.model, vocab, self.config.num_passes)
        assert forward is not None and training is not None
        return forward, training

    def flops_of(self, flops: Flops) -> float:
        """Return the operations of one batch."""
        number, length = self.batch
        sums = (length, length, length**2, length**2, length**2)
        return flops.of(LengthSums(*(float(number * each) for each in sums)))

    @property
    def search(self) -> SearchBytes:
        """What a translation keeps."""
        return search_bytes(self.model, self.config.train.precision)

    def largest_batch(self) -> int | None:
        """Return the largest `train.max_tokens` that fits into a device."""
        return self._largest(self.model, self.layout)

    def layouts(self) -> Iterator[LayoutCosts]:
        """Yield the costs of all stages and expert-parallel sizes that these ranks could have."""
        is_half = self.config.train.precision != "fp32"
        for spread in self._spreads():
            for stage in STAGES:
                if stage == 0 and spread > 1 and is_half:
                    continue  # DeepSpeed cannot
                yield self.of_layout(Layout(self.layout.ranks, spread, stage))

    def of_layout(self, layout: Layout) -> LayoutCosts:
        """Return the costs of another layout."""
        found = self._memory(self.model, layout)
        held = found.states
        always = held.weights + held.optimizer + held.gradients + held.buckets + held.gathered
        return LayoutCosts(
            layout,
            always,
            found.peak,
            self._largest(self.model, layout),
            sum(each.sent for each in self._traffic(layout)),
        )

    def _spreads(self) -> list[int]:
        """Return the sizes by which the ranks and the experts of all layers can be divided."""
        counts, ranks = self.model.experts_per_layer, self.layout.ranks
        if not counts:
            return [1]
        sizes = [
            each
            for each in range(1, min(ranks, *counts) + 1)
            if ranks % each == 0 and not any(count % each for count in counts)
        ]
        return [each for each in sizes if each & (each - 1) == 0 or each == max(sizes)]

    def _memory(self, model: CostedConfig, layout: Layout) -> Memory:
        buffers = with_stage(self.buffers, layout.stage)
        return memory(self.config, model, layout, buffers, self.batch)

    def _largest(self, model: CostedConfig, layout: Layout) -> int | None:
        if self.limit is None:
            return None
        buffers, length = with_stage(self.buffers, layout.stage), self.batch.length
        return largest_batch(self.config, model, layout, buffers, length, self.limit)

    def _traffic(self, layout: Layout) -> list[Collective]:
        limit = self.buffers.persistent
        counts = parameters(self.config, self.model, self.size, layout, limit)
        return traffic(self.config, self.model, counts, layout, self.batch, self.buffers.live)


def estimate(
    config: ExperimentConfig,
    engine: Mapping[str, Any],
    ranks: int | None,
    length: int | None = None,
    gpu_memory: float | None = None,
) -> Estimate | None:
    """Return the costs of an experiment; None for a model that is not one of ds_seq.

    Args:
        config: the experiment.
        engine: its DeepSpeed dictionary.
        ranks: number of processes; None: as few as its experts need.
        length: tokens of a sentence; None: usual ones.
        gpu_memory: GiB of a device; None: no limit.
    """
    model = config.model
    if not is_costed(model):
        return None
    spread = config.train.expert_parallel
    return Estimate(
        config,
        model,
        Layout(ranks or spread, spread, zero_stage(engine)),
        Buffers.of(engine),
        BatchShape.of(config.batch_tokens, length or USUAL_LENGTH),
        None if gpu_memory is None else gpu_memory * 2**30,
    )
