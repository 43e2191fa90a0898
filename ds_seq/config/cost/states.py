"""Weights, gradients, optimizer states and buffers of one device, as DeepSpeed keeps them.

ZeRO (Rajbhandari et al., 2020) divides a parameter among the devices that have a copy of it: all of
them, or for experts those of the other expert-parallel groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ds_seq.config.cost.batch import FLOAT, WIDTH
from ds_seq.config.cost.kinds import CostedConfig, matrices, tables
from ds_seq.config.deepspeed import zero_stage
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.model.section import ModelSize
from ds_seq.config.model.transformer import TransformerConfig
from ds_seq.config.optim import AdafactorConfig, AdamConfig, SgdConfig
from ds_seq.names import Stack

_WHOLE = 3  # stage that divides the weights
_DEFAULT_BUCKET = 500_000_000
_DEFAULT_PERSISTENT = 100_000
_DEFAULT_LIVE = 1_000_000_000


class Layout(NamedTuple):
    """Where a run is."""

    ranks: int
    expert_parallel: int
    stage: int

    @property
    def replicas(self) -> int:
        """Number of ranks that hold the same experts."""
        return max(1, self.ranks // self.expert_parallel)


@dataclass(frozen=True)
class Buffers:
    """Sizes of DeepSpeed's buffers.

    Attributes:
        bucket: numbers of a bucket of gradients.
        num_buckets: how many there are.
        persistent: largest parameter that stage 3 does not divide.
        offloads: whether optimizer states are on the host.
        live: weights that stage 3 keeps gathered between forward and backward.
    """

    bucket: int = _DEFAULT_BUCKET
    num_buckets: int = 1
    persistent: int = _DEFAULT_PERSISTENT
    offloads: bool = False
    live: int = _DEFAULT_LIVE

    @classmethod
    def of(cls, engine: Mapping[str, Any]) -> Buffers:
        """Return those of a DeepSpeed dictionary."""
        zero = engine.get("zero_optimization", {})
        offload = zero.get("offload_optimizer")
        return cls(
            int(zero.get("reduce_bucket_size", _DEFAULT_BUCKET)),
            2 if zero.get("overlap_comm") and zero_stage(engine) < _WHOLE else 1,
            int(zero.get("stage3_param_persistence_threshold", _DEFAULT_PERSISTENT)),
            isinstance(offload, Mapping) and offload.get("device", "none") != "none",
            min(
                int(zero.get(f"stage3_max_{key}", _DEFAULT_LIVE))
                for key in ("live_parameters", "reuse_distance")
            ),
        )


class Parameters(NamedTuple):
    """Numbers of trained parameters of one device before ZeRO."""

    dense: float
    experts: float
    small: float
    """Of them those that stage 3 leaves whole."""
    table: int
    """Of the table of the vocabulary, the largest."""
    frozen: int = 0
    """Further parameters, of a language model that is not trained."""

    @property
    def total(self) -> float:
        """All that are trained."""
        return self.dense + self.experts


@dataclass(frozen=True)
class States:
    """Bytes of one device.

    Attributes:
        weights: parameters in the model's precision.
        kept_gradients: gradients that are there before the last backward pass of an update.
        gradients: gradients at the end of the backward pass.
        optimizer: fp32 copies and the optimizer's states.
        gathered: weights that stage 3 gathers for forward and backward.
        buckets: buffers for the exchange of gradients, from the backward pass on.
        reducing: copies while gradients are exchanged.
        stepping: copies during the step.
    """

    weights: float
    kept_gradients: float
    gradients: float
    optimizer: float = 0.0
    gathered: float = 0.0
    buckets: float = 0.0
    reducing: float = 0.0
    stepping: float = 0.0


def parameters(
    config: ExperimentConfig, model: CostedConfig, size: ModelSize, layout: Layout, limit: int
) -> Parameters:
    """Return the numbers of parameters of one device.

    Args:
        config: the experiment.
        model: its model.
        size: size of the model.
        layout: where it runs.
        limit: largest parameter that stage 3 leaves whole.
    """
    vocab = config.data.vocab.target_side.size
    if not isinstance(model, TransformerConfig):
        rows = tables(model, vocab, config.data.vocab.source_side.size)
        large = sum(each for each in (*rows, *matrices(model)) if each > limit)
        small = max(0.0, size.total - large) if limit else 0.0  # biases are in no matrix
        return Parameters(size.total, 0.0, small, max(rows))
    table = vocab * (model.embedding_dim or model.d_model)
    if model.adaptive_bands is not None:
        table = max(model.adaptive_bands.matrices(model.d_model, vocab, model.shares_output))
    read, dense, frozen, small = model.language_model, size.total - size.experts, 0, 0.0
    own = dense
    if read is not None:
        count, _ = read.num_params(model.d_model, config.data.vocab.source_side.size)
        own -= count
        if read.weights == "frozen":
            frozen, dense = count, own
        else:
            small = _small(config, read.section, count, limit)
    return Parameters(
        dense,
        size.experts / layout.expert_parallel,
        _small(config, model, own, limit) + small,
        table,
        frozen,
    )


def _small(config: ExperimentConfig, model: TransformerConfig, dense: int, limit: int) -> float:
    """Return how many of the dense parameters are in tensors of at most `limit` numbers."""
    vocab = config.data.vocab
    d, head = model.d_model, model.head_width(model.d_model)
    if limit < d:  # not even biases and norms
        return 0.0
    kv, attention = (model.num_kv_heads or model.num_heads) * head, model.num_heads * head
    tables = [vocab.target_side.size, vocab.source_side.size]
    inputs = tables[:1] if model.shares_inputs else tables
    inputs = inputs if model.characters is None else []
    tables = inputs if model.shares_output else [*inputs, tables[0]]
    width = model.embedding_dim or d
    matrices = [size * width for size in tables]
    if model.adaptive_bands is not None:
        matrices = model.adaptive_bands.matrices(d, vocab.target_side.size, model.shares_output)
    if model.characters is not None:
        matrices += model.characters.matrices(d)
    if model.has_dense_head:
        matrices.append(d * d)
    for stack in model.stacks:
        for layer, num_experts in enumerate(model.expert_counts(stack)):
            matrices += _mixer_matrices(model, stack, layer)
            if stack == "decoder" and len(model.stacks) > 1:
                matrices += [d * attention, 2 * d * kv, attention * d]
            wide = model.ffn_dim
            if model.moe is not None and num_experts:
                expert = model.moe.ffn_dim or model.ffn_dim
                matrices.append(num_experts * d)
                wide = model.moe.dense_width(expert)
            inner = model.inner_width(wide)
            matrices += [(2 if model.is_gated else 1) * d * inner, d * inner]
    return max(0.0, dense - sum(each for each in matrices if each > limit))


def _mixer_matrices(model: TransformerConfig, stack: Stack, layer: int) -> list[int]:
    """Return the sizes of the matrices of a layer's own mixer."""
    d, head = model.d_model, model.head_width(model.d_model)
    retention, convolution = model.retention_of(stack), model.convolution_of(stack)
    if retention is not None:
        values = retention.values(d)
        return [d * 2 * (d + values), values * d]
    if convolution is not None:
        channels, size = convolution.channels(d), convolution.sizes(model.layers_of(stack))[layer]
        kernels = convolution.kernel_params(d, model.num_heads, size)
        return [(2 if convolution.glu else 1) * d * channels, channels * d, kernels]
    kv, attention = (model.num_kv_heads or model.num_heads) * head, model.num_heads * head
    return [d * (attention + 2 * kv), attention * d]


def optimizer_bytes(config: ExperimentConfig) -> int:
    """Return the bytes of a parameter's optimizer states, without an fp32 copy of it."""
    optimizer = config.optimizer
    if isinstance(optimizer, AdamConfig):
        return 2 * FLOAT
    if isinstance(optimizer, SgdConfig):
        return FLOAT if optimizer.momentum else 0
    return 0 if isinstance(optimizer, AdafactorConfig) else 2 * FLOAT


class _Bytes(NamedTuple):
    """Bytes of a number, and numbers of a device."""

    width: int
    """In the model's precision."""
    sums: int
    """In sums of gradients over batches."""
    total: float
    """Parameters of a device."""
    part: float
    """Its share of them under ZeRO."""
    bucket: float
    """Of a bucket of gradients."""

    @property
    def used(self) -> float:
        """Numbers of a bucket that are ever used."""
        return min(self.bucket, self.total)


def states(
    config: ExperimentConfig, counts: Parameters, layout: Layout, buffers: Buffers
) -> States:
    """Return the bytes of one device.

    Args:
        config: the experiment.
        counts: parameters of one device.
        layout: where it runs.
        buffers: sizes of DeepSpeed's buffers.
    """
    width = WIDTH[config.train.precision]
    accumulates = config.train.accumulate > 1
    adds_in_fp32 = accumulates and layout.stage > 0 and not buffers.offloads
    size = _Bytes(
        width,
        FLOAT if adds_in_fp32 else width,
        counts.total,
        counts.dense / layout.ranks + counts.experts / layout.replicas,
        buffers.bucket,
    )
    # ZeRO has fp32 copies of the weights in fp32, too
    master = FLOAT if width < FLOAT or layout.stage > 0 else 0
    optimizer = 0.0
    if not buffers.offloads:
        held = size.part if layout.stage > 0 else size.total
        optimizer = held * (master + optimizer_bytes(config))
    if config.train.ema is not None:  # an average in fp32 of what the optimizer has
        optimizer += (size.part if layout.stage > 0 else size.total) * FLOAT
    if layout.stage == 0:
        found = _plain(size, counts, layout, accumulates)
    elif layout.stage == 1:
        found = _divided_states(size, buffers, accumulates)
    elif layout.stage < _WHOLE:
        found = _divided_gradients(size, counts, buffers, accumulates)
    else:
        found = _divided_weights(size, counts, layout, buffers.live)
    spread = layout.ranks if layout.stage == _WHOLE else 1
    weights = found.weights + counts.frozen * width / spread
    return replace(found, optimizer=optimizer, weights=weights)


def _plain(size: _Bytes, counts: Parameters, layout: Layout, accumulates: bool) -> States:
    gradients = size.total * size.width
    copied = max(counts.dense, counts.experts) if layout.ranks > 1 else 0.0
    return States(
        weights=size.total * size.width,
        kept_gradients=gradients if accumulates else 0.0,
        gradients=gradients,
        reducing=min(copied, _DEFAULT_BUCKET) * size.width,
        stepping=size.total * FLOAT if size.width < FLOAT else 0.0,
    )


def _divided_states(size: _Bytes, buffers: Buffers, accumulates: bool) -> States:
    """Stage 1: all gradients until the end; each rank steps with its share of them."""
    adds = size.sums > size.width
    kept = size.total * (size.width + (size.sums if adds else 0)) if accumulates else 0.0
    return States(
        weights=size.total * size.width,
        kept_gradients=kept,
        gradients=max(kept, size.total * size.width),
        buckets=size.bucket * buffers.num_buckets * size.sums,
        reducing=size.used * size.sums + (size.total * size.sums if adds else 0.0),
        stepping=_stepping(size),
    )


def _divided_gradients(
    size: _Bytes, counts: Parameters, buffers: Buffers, accumulates: bool
) -> States:
    """Stage 2: gradients go from a bucket to the share of each rank."""
    return States(
        weights=size.total * size.width,
        kept_gradients=size.part * size.sums if accumulates else 0.0,
        gradients=size.part * size.sums,
        buckets=size.bucket * buffers.num_buckets * size.width,
        reducing=(size.used + counts.table) * size.width,
        stepping=_stepping(size),
    )


def _divided_weights(size: _Bytes, counts: Parameters, layout: Layout, live: int) -> States:
    """Stage 3: weights are gathered for a batch, and those that are used again stay."""
    small = min(counts.small, size.total)
    divided = size.total - small if layout.ranks > 1 else 0.0
    if layout.replicas == 1:  # experts without copies are where they are
        divided = max(0.0, counts.dense - small)
    return States(
        weights=(size.part + small) * size.width,
        kept_gradients=size.part * size.sums,
        gradients=size.part * size.sums,
        gathered=min(divided, max(live, counts.table)) * size.width,
        buckets=size.bucket * size.width,
        reducing=(2 * size.used + counts.table) * size.width,
        stepping=size.part * FLOAT if size.width < FLOAT else 0.0,
    )


def _stepping(size: _Bytes) -> float:
    """Return the copies of a rank's gradients that are there while it steps."""
    return size.part * (FLOAT if size.width == FLOAT else size.width + FLOAT)
