"""What each kind of model keeps for the backward pass and in a search, and its matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeGuard

from ds_seq.config.cost.activations import activations
from ds_seq.config.cost.batch import WIDTH, Activations, BatchShape, Device
from ds_seq.config.cost.gated import (
    GatedConfig,
    gated_activations,
    gated_matrices,
    gated_output,
    gated_search,
)
from ds_seq.config.cost.lstm import (
    LstmConfig,
    lstm_activations,
    lstm_matrices,
    lstm_output,
    lstm_search,
)
from ds_seq.config.model import RecurrentConfig, TransformerConfig
from ds_seq.names import Precision

OtherConfig = LstmConfig | GatedConfig
CostedConfig = TransformerConfig | OtherConfig
"""The kinds of models whose costs are known."""


class SearchBytes(NamedTuple):
    """What a translation keeps, in bytes."""

    target: float
    """Per target token of a hypothesis."""
    source: float
    """Per source token; all hypotheses of a sentence share it."""
    state: float
    """Per hypothesis, whatever its length."""


def is_costed(model: object) -> TypeGuard[CostedConfig]:
    """Return whether the costs of a model are known."""
    return isinstance(model, CostedConfig)


def kept_by(
    model: CostedConfig,
    batch: BatchShape,
    vocab_size: int,
    device: Device,
    expert_parallel: int = 1,
) -> Activations:
    """Return what a forward pass in training keeps; for the arguments, see `activations`."""
    if isinstance(model, TransformerConfig):
        return activations(model, batch, vocab_size, device, expert_parallel)
    if isinstance(model, LstmConfig):
        return lstm_activations(model, batch, vocab_size, device)
    return gated_activations(model, batch, vocab_size, device)


def tables(model: OtherConfig, target: int, source: int) -> list[int]:
    """Return the sizes of the matrices with a row per token.

    Args:
        model: the model.
        target: size of the vocabulary of the target.
        source: size of that of the source.
    """
    if isinstance(model, LstmConfig):
        width, last = model.decoder_embedding_dim, lstm_output(model)
    else:
        width, last = model.embedding_dim, gated_output(model)
    found = [target * width]
    if isinstance(model, RecurrentConfig):
        width = model.encoder_embedding_dim
    if not model.shares_inputs:
        found.append(source * width)
    if model.adaptive_bands is not None:
        return [*found, *model.adaptive_bands.matrices(last, target, tied=False)[1:]]
    return found if model.shares_output else [*found, target * last]


def matrices(model: OtherConfig) -> Iterator[int]:
    """Yield the sizes of all other matrices."""
    return lstm_matrices(model) if isinstance(model, LstmConfig) else gated_matrices(model)


def search_bytes(model: CostedConfig, precision: Precision) -> SearchBytes:
    """Return what a translation keeps."""
    width = WIDTH[precision]
    if isinstance(model, TransformerConfig):
        return _of_transformer(model, width)
    search = lstm_search(model) if isinstance(model, LstmConfig) else gated_search(model)
    source, state = search
    return SearchBytes(0.0, float(source * width), float(state * width))


def _of_transformer(model: TransformerConfig, width: int) -> SearchBytes:
    kv = (model.num_kv_heads or model.num_heads) * model.head_width(model.d_model)
    each = 2.0 * kv * model.calls_of("decoder") * width
    target = each if model.has_self_attention("decoder") else 0.0
    return SearchBytes(target, each, _state_bytes(model, width))


def _state_bytes(model: TransformerConfig, width: int) -> float:
    """Return the bytes of a hypothesis' state; retention has one, and convolution."""
    convolution, retention = model.convolution_of("decoder"), model.retention_of("decoder")
    if convolution is not None:
        columns = sum(convolution.sizes(model.decoder_layers)) * model.decoder_repeats
        return float(columns * convolution.channels(model.d_model) * width)
    if retention is None:
        return 0.0
    head = model.d_model // retention.heads(model.num_heads)
    sums = head * retention.values(model.d_model) + model.d_model  # values and keys
    return float(sums * model.calls_of("decoder") * WIDTH["fp32"])
