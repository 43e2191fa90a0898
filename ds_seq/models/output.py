"""What models return. Plain named tuples: ZeRO-3's hooks look into tuples and dicts only.

Shapes: B batch, S source length, T target length, N real labels, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ds_seq.moe.output import MoeAux, RoutingStats


class LayerOutputs(NamedTuple):
    """What the layers of a model have seen and done, first layer first.

    Tuples of tensors, because ZeRO-3's hooks look into tuples.
    """

    encoder: tuple[Tensor, ...]
    """(B, S, D) each: what leaves an encoder layer, before the last norm of the stack."""
    decoder: tuple[Tensor, ...]
    """(B, T, D) each."""
    encoder_attention: tuple[Tensor, ...] = ()
    """(B, H, S, S) each: rows sum to 1; empty unless asked for."""
    decoder_attention: tuple[Tensor, ...] = ()
    """(B, H, T, T) each; 0 where a query sees the future."""
    cross_attention: tuple[Tensor, ...] = ()
    """(B, H, T, S) each."""


class LayerResult(NamedTuple):
    """What one layer returns."""

    hidden: Tensor
    """(B, L, D), L being S or T."""
    aux: tuple[MoeAux, ...]
    """Losses and statistics of sparse sub-layers, in the order of their calls."""
    maps: dict[str, Tensor]
    """Attention maps by sub-layer: `self_attention` (B, H, L, L), `cross_attention` (B, H, T, S);
    empty unless asked for."""


class StackResult(NamedTuple):
    """What a stack of layers returns."""

    hidden: Tensor
    """(B, L, D), after the last norm."""
    aux: list[MoeAux]
    """One for each call of a sparse layer."""
    states: tuple[Tensor, ...]
    """`LayerResult.hidden` of each layer; () unless asked for."""
    maps: tuple[dict[str, Tensor], ...]
    """`LayerResult.maps` of each layer; () unless asked for."""


class EncoderOutput(NamedTuple):
    """The encoded source."""

    hidden: Tensor
    """(B, S, D)."""
    mask: Tensor
    """(B, S) bool, True at real tokens."""
    tag: Tensor | None
    """(B, D) embedding of the first source token, where feed-forwards are routed by it."""
    router_losses: dict[str, Tensor]
    """See `ModelOutput`; of the encoder only."""
    moe_stats: list[RoutingStats]
    """See `ModelOutput`; of the encoder only."""
    states: tuple[Tensor, ...] = ()
    """See `LayerOutputs.encoder`; () unless asked for."""
    attention: tuple[Tensor, ...] = ()
    """See `LayerOutputs.encoder_attention`."""


class ModelOutput(NamedTuple):
    """Scores of the target, and what the routers of a sparse model want to say."""

    logits: Tensor
    """(N, V): a row for each real label, in row-major order; see `ds_seq.data.batch.Batch.mask`."""
    router_losses: dict[str, Tensor]
    """Scalar fp32 losses by name, summed over MoE layers; empty for a dense model."""
    moe_stats: list[RoutingStats]
    """One for each MoE layer, encoder first; empty for a dense model."""
    layers: LayerOutputs | None = None
    """Where `Capture` asks for it."""
