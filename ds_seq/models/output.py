"""What models return: named tuples, because ZeRO-3's hooks inspect only tuples and dicts.

Shapes: B batch, S source length, T target length, N real labels, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ds_seq.moe.output import MoeAux, RoutingStats


class LayerOutputs(NamedTuple):
    """Hidden states and attention maps of the layers of a model, in order.

    These are tuples of tensors, because ZeRO-3's hooks inspect tuples.
    """

    encoder: tuple[Tensor, ...]
    """(B, S, D) each: output of an encoder layer, before the stack's final norm."""
    decoder: tuple[Tensor, ...]
    """(B, T, D) each: output of a decoder layer, before the stack's final norm."""
    encoder_attention: tuple[Tensor, ...] = ()
    """(B, H, S, S) each; rows sum to 1. Empty unless requested."""
    decoder_attention: tuple[Tensor, ...] = ()
    """(B, H, T, T) each; 0 at keys later than the query."""
    cross_attention: tuple[Tensor, ...] = ()
    """(B, H, T, S) each."""


class LayerResult(NamedTuple):
    """What one layer returns."""

    hidden: Tensor
    """(B, L, D), where L is S or T."""
    aux: tuple[MoeAux, ...]
    """Losses and statistics of sparse sub-layers, in the order of the calls."""
    maps: dict[str, Tensor]
    """Attention maps by sub-layer: `self_attention` (B, H, L, L), `cross_attention` (B, H, T, S);
    empty unless requested."""


class StackResult(NamedTuple):
    """What a stack of layers returns."""

    hidden: Tensor
    """(B, L, D), after the final norm."""
    aux: list[MoeAux]
    """One per call of a sparse layer."""
    states: tuple[Tensor, ...]
    """`LayerResult.hidden` of each layer; empty unless requested."""
    maps: tuple[dict[str, Tensor], ...]
    """`LayerResult.maps` of each layer; empty unless requested."""


class EncoderOutput(NamedTuple):
    """The encoded source."""

    hidden: Tensor
    """(B, S, D)."""
    mask: Tensor
    """(B, S) bool, True at real tokens."""
    tag: Tensor | None
    """(B, D) embedding of the first source token, if feed-forwards route by it."""
    router_losses: dict[str, Tensor]
    """Router losses of the encoder, see `ModelOutput`."""
    moe_stats: list[RoutingStats]
    """Routing statistics of the encoder, see `ModelOutput`."""
    states: tuple[Tensor, ...] = ()
    """See `LayerOutputs.encoder`; empty unless requested."""
    attention: tuple[Tensor, ...] = ()
    """See `LayerOutputs.encoder_attention`."""
    adapters: Any = None
    """See `ds_seq.modules.body.Context.adapters`."""
    sets: Tensor | None = None
    """(B,) int64, which set of parameters the decoder uses, if it has several."""


class ModelOutput(NamedTuple):
    """Scores of the target, and the losses and statistics of a sparse model's routers."""

    logits: Tensor
    """(N, V): one row per real label, in row-major order; see `ds_seq.data.batch.Batch.mask`. With
    `label_log_probs`, (N, 0)."""
    router_losses: dict[str, Tensor]
    """Scalar fp32 losses by name, summed over MoE layers; empty for a dense model."""
    moe_stats: list[RoutingStats]
    """One per call of an MoE layer, encoder first; empty for a dense model."""
    layers: LayerOutputs | None = None
    """Hidden states and attention maps, if requested by `Capture`."""
    label_log_probs: Tensor | None = None
    """(N,) float32 log-probabilities of the correct tokens alone, from a model with adaptive
    softmax that was given `TextInputs.labels`."""
    expert_log_probs: Tensor | None = None
    """(B, K) float32 log-probabilities of the experts of a mixture given the source, if a prior is
    learned, see `ds_seq.models.expert_prior`."""
