"""Encoding and decoding by `ds_seq.modules.native_step`: which models and calls it serves.

Shapes: B sentences, S source length, K beam width, N = B K hypotheses (row n belongs to sentence
n // K), D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from ds_seq.models.output import EncoderOutput
from ds_seq.models.stack import Stack, TransformerLayer
from ds_seq.modules import native
from ds_seq.modules.attention import CrossAttention, SelfAttention
from ds_seq.modules.embedding import TokenEmbedding
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.modules.linear import Linear
from ds_seq.modules.native_cache import NativeCache, encode
from ds_seq.modules.native_step import (
    ACTIVATIONS,
    MapWeights,
    NativeMap,
    NativeStack,
    StepBody,
    StepExperts,
)
from ds_seq.modules.positions import LearnedPositions, SinusoidalPositions
from ds_seq.modules.residual import Residual
from ds_seq.modules.rms_norm import RmsNorm
from ds_seq.moe.experts import Experts
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.moe.router import SoftmaxRouter

_LARGE = 2**23  # weights of a decoder whose products are worth several threads


class NativeEncoder:
    """A packed copy of an encoder, and the stack from which it was made.

    Args:
        stack: the encoder.
        embedding: embedding of its tokens.
    """

    def __init__(self, stack: Stack, embedding: TokenEmbedding) -> None:
        self._stack = stack
        self._packed = _packed(stack, embedding)

    @classmethod
    def of(cls, stack: Stack, embedding: nn.Module) -> NativeEncoder | None:
        """Return an encoder with constant weights, or None if it cannot be expressed."""
        if native.library() is None or not _serves(stack, embedding, causal=False):
            return None
        return cls(stack, cast(TokenEmbedding, embedding))

    def encode(self, source: Tensor, mask: Tensor) -> Tensor | None:
        """Return the states (B, S, D) of tokens (B, S), zero at padding; None if operators have to.

        Args:
            source: tokens (B, S).
            mask: (B, S) bool, True at real tokens.
        """
        if not _may_run(self._stack, self._packed) or not source.numel():
            return None
        return encode(self._packed, self._stack.positions, source, mask.sum(1))


class NativeStep:
    """A packed copy of a decoder and its projection, and the modules from which it was made.

    Args:
        stack: the decoder.
        embedding: embedding of its tokens.
        output: projection to the vocabulary; None if tied.
    """

    def __init__(self, stack: Stack, embedding: TokenEmbedding, output: nn.Module | None) -> None:
        self._stack = stack
        crossed = (body for _, body in _bodies(stack) if isinstance(body, CrossAttention))
        maps = (body.key_value for body in crossed)
        self._sources = [NativeMap(each.weight, each.bias) for each in maps]
        self._packed = _packed(stack, embedding)
        scored = embedding if output is None else output
        self.scores: NativeMap | None = None
        """Scores of states (N, D) against the vocabulary (N, V); None: not by these kernels."""
        if isinstance(scored, TokenEmbedding) or type(scored) is Linear:
            weight, bias = cast(Linear, scored).weight, cast(Linear, scored).bias
            self.scores = NativeMap(weight, bias)

    @classmethod
    def of(cls, stack: Stack, embedding: nn.Module, output: nn.Module | None) -> NativeStep | None:
        """Return the step of a decoder with constant weights, or None if it cannot be expressed."""
        if native.library() is None or not _serves(stack, embedding, causal=True):
            return None
        return cls(stack, cast(TokenEmbedding, embedding), output)

    def start(self, encoded: EncoderOutput, beam: int, max_length: int) -> NativeCache | None:
        """Return the state of a search, or None if operators have to do it.

        Args:
            encoded: B encoded sentences.
            beam: number of hypotheses per sentence, K.
            max_length: largest number of steps.
        """
        hidden = encoded.hidden
        other = encoded.adapters is not None or encoded.sets is not None
        if other or hidden.dtype != torch.float32 or not _may_run(self._stack, self._packed):
            return None
        rows = hidden.flatten(0, 1).contiguous()
        sources = [project(rows).view(*hidden.shape[:2], -1) for project in self._sources]
        of_batch = encoded.mask.sum(1), self._stack.positions
        return NativeCache(self._packed, sources, *of_batch, beam, max_length, self.scores)


def _may_run(stack: Stack, packed: NativeStack) -> bool:
    """Return whether the kernels may replace the operators in a call.

    They may not if gradients are wanted, if somebody watches a module, or where several threads
    share the products of a large model.
    """
    if torch.is_grad_enabled() or stack.training or torch.is_autocast_enabled("cpu"):
        return False
    if torch.get_num_threads() > 1 and packed.num_weights > _LARGE:
        return False
    return not any(each._forward_hooks or each._forward_pre_hooks for each in stack.modules())


def _bodies(stack: Stack) -> list[tuple[Residual, nn.Module]]:
    """Return the sub-layers in the order of the calls."""
    return [
        (cast(Residual, layer.get_submodule(f"{name}_residual")), layer.get_submodule(name))
        for _ in range(stack.repeats)
        for layer in stack.layers
        for name in cast(TransformerLayer, layer).names
    ]


def _packed(stack: Stack, embedding: TokenEmbedding) -> NativeStack:
    """Return a stack that the kernels serve, packed."""
    bodies = [_body(*each) for each in _bodies(stack)]
    table = embedding.weight.detach()
    return NativeStack(table, embedding.scale, bodies, stack.embedding_norm, stack.final_norm)


def _body(residual: Residual, body: nn.Module) -> StepBody:
    """Return what the kernels need of a sub-layer."""
    around = residual.pre_norm, residual.norm, residual.scale
    if isinstance(body, FeedForward):
        maps = _weights(body.up), _weights(body.down)
        kinds = ACTIVATIONS[body.activation], (0, 0, 0)
        return StepBody("feed_forward", *around, *maps, *kinds, None)
    if isinstance(body, MoeFeedForward):
        experts = StepExperts(_experts(body.experts), body.top_k, body.normalize_weights != "none")
        maps = MapWeights(cast(SoftmaxRouter, body.gate).weight, None), experts.maps[1]
        kinds = ACTIVATIONS[body.experts.activation], (0, 0, 0)
        return StepBody("experts", *around, *maps, *kinds, experts)
    if isinstance(body, SelfAttention):
        shared = body.qkv.widths[1] // body.head_width
        heads = body.num_heads, shared, body.head_width
        kind: Literal["self_attention", "source_attention"]
        kind = "self_attention" if body.causal else "source_attention"
        maps = _weights(body.qkv), _weights(body.output)
        return StepBody(kind, *around, *maps, (0, False), heads, None)
    assert isinstance(body, CrossAttention)
    heads = body.num_heads, body.key_value.widths[0] // body.head_width, body.head_width
    maps = _weights(body.query), _weights(body.output)
    return StepBody("cross_attention", *around, *maps, (0, False), heads, None)


def _weights(module: Linear) -> MapWeights:
    return MapWeights(module.weight, module.bias)


def _experts(experts: Experts) -> list[MapWeights]:
    """Return the maps of each expert, up and down."""
    ups, downs = experts.maps
    maps = []
    for expert in range(experts.num_local):
        biases = (None if b is None else b[expert, 0] for b in (experts.b1, experts.b2))
        pair = zip((ups[expert], downs[expert]), biases, strict=True)
        maps += [MapWeights(weight, bias) for weight, bias in pair]
    return maps


def _serves(stack: Stack, embedding: nn.Module, causal: bool) -> bool:
    """Return whether the kernels can express a stack: the standard parts, float32, on a CPU."""
    if type(embedding) is not TokenEmbedding or embedding.factor is not None:
        return False
    if stack.bias is not None or stack.find_ways is not None:
        return False
    if type(stack.positions) not in (type(None), SinusoidalPositions, LearnedPositions):
        return False
    around = [norm for norm in (stack.embedding_norm, stack.final_norm) if norm is not None]
    pairs = _bodies(stack)
    if any(type(residual) is not Residual for residual, _ in pairs):
        return False
    norms = [*around, *(residual.norm for residual, _ in pairs)]
    bodies = [body for _, body in pairs]
    weights = [embedding.weight, *(p for each in (*norms, *bodies) for p in each.parameters())]
    return (
        all(map(_is_norm, norms))
        and all(map(_is_body, bodies))
        and all(body.causal == causal for body in bodies if isinstance(body, SelfAttention))
        and (causal or not any(isinstance(body, CrossAttention) for body in bodies))
        and all(w.dtype == torch.float32 and w.device.type == "cpu" for w in weights)
        and embedding.weight.size(1) % native.LANES == 0
    )


def _is_norm(norm: nn.Module) -> bool:
    return isinstance(norm, RmsNorm) or (isinstance(norm, nn.LayerNorm) and norm.elementwise_affine)


def _is_body(body: nn.Module) -> bool:
    """Return whether a body is a plain attention, feed-forward or layer of experts."""
    if type(body) is MoeFeedForward:
        return _has_plain_experts(body)
    if type(body) is FeedForward:
        maps = [body.up, body.down]
        whole = body.down.in_features % native.LANES == 0
        plain = body.inner_norm is None and body.activation in ACTIVATIONS
    elif type(body) is SelfAttention:
        maps = [body.qkv, body.output]
        whole = body.head_width % native.LANES == 0
        norms = body.query_norm, body.key_norm, body.inner_norm
        plain = norms == (None, None, None) and body.rotary is None
    elif type(body) is CrossAttention:
        maps = [body.query, body.key_value, body.output]
        whole = body.head_width % native.LANES == 0
        plain = body.query_norm is None and body.key_norm is None
    else:
        return False
    return plain and whole and all(type(each) is Linear for each in maps)


def _has_plain_experts(body: MoeFeedForward) -> bool:
    """Return whether each row goes to the experts of a softmax, all of them here, and to no other.

    A capacity, which makes rows depend on each other, is not expressed.
    """
    experts = body.experts
    special = experts.inner_norm, experts.bits, experts.lora, body.branch
    return (
        type(body.gate) is SoftmaxRouter
        and body.eval_capacity_factor is None
        and body.expert_parallel == 1
        and all(each is None for each in special)
        and experts.activation in ACTIVATIONS
        and experts.w2.size(2) % native.LANES == 0
    )
