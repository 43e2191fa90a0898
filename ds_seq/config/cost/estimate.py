"""All costs of a run together, for one layout and for others that the same devices could have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ds_seq.config.cost.batch import WIDTH, BatchShape
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
    model: TransformerConfig
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
    def recomputed(self) -> Memory:
        """Memory with `model.activation_checkpointing`."""
        model = self.model.model_copy(update={"activation_checkpointing": True})
        return self._memory(model, self.layout)

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
    def cache_bytes(self) -> tuple[float, float]:
        """Bytes of a translation's cache: per target token of a hypothesis, per source token.

        All hypotheses of a sentence share the latter. See `state_bytes` for other mixers.
        """
        model = self.model
        kv = (model.num_kv_heads or model.num_heads) * model.head_width(model.d_model)
        each = 2.0 * kv * model.calls_of("decoder") * WIDTH[self.config.train.precision]
        return each if model.has_self_attention("decoder") else 0.0, each

    @property
    def state_bytes(self) -> float:
        """Bytes of a hypothesis' state in a translation, whatever its length.

        Retention has one, and convolution.
        """
        model = self.model
        convolution = model.convolution_of("decoder")
        if convolution is not None:
            columns = sum(convolution.sizes(model.decoder_layers)) * model.decoder_repeats
            width = WIDTH[self.config.train.precision]
            return float(columns * convolution.channels(model.d_model) * width)
        retention = model.retention_of("decoder")
        if retention is None:
            return 0.0
        width = model.d_model // retention.heads(model.num_heads)
        sums = width * retention.values(model.d_model) + model.d_model  # values and keys
        return float(sums * model.calls_of("decoder") * WIDTH["fp32"])

    def largest_batch(self, recompute: bool = False) -> int | None:
        """Return the largest `train.max_tokens` that fits into a device."""
        model = self.model
        if recompute:
            model = model.model_copy(update={"activation_checkpointing": True})
        return self._largest(model, self.layout)

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

    def _memory(self, model: TransformerConfig, layout: Layout) -> Memory:
        buffers = with_stage(self.buffers, layout.stage)
        return memory(self.config, model, layout, buffers, self.batch)

    def _largest(self, model: TransformerConfig, layout: Layout) -> int | None:
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
    """Return the costs of an experiment; None for a model that is no Transformer of ds_seq.

    Args:
        config: the experiment.
        engine: its DeepSpeed dictionary.
        ranks: number of processes; None: as few as its experts need.
        length: tokens of a sentence; None: usual ones.
        gpu_memory: GiB of a device; None: no limit.
    """
    model = config.model
    if not isinstance(model, TransformerConfig):
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
