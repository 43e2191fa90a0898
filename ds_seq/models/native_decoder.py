"""Decoding by `ds_seq.modules.native_step`: which models it serves, and the state of a search.

Shapes: B sentences, S source length, K beam width, N = B K hypotheses (row n belongs to sentence
n // K), D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from ds_seq.models.output import EncoderOutput
from ds_seq.models.stack import Stack, TransformerLayer
from ds_seq.modules import native
from ds_seq.modules.attention import CrossAttention, SelfAttention
from ds_seq.modules.embedding import TokenEmbedding
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.modules.linear import Linear
from ds_seq.modules.native_cache import NativeCache
from ds_seq.modules.native_step import (
    ACTIVATIONS,
    NativeDecoder,
    NativeMap,
    StepBody,
)
from ds_seq.modules.positions import LearnedPositions, SinusoidalPositions
from ds_seq.modules.residual import Residual
from ds_seq.modules.rms_norm import RmsNorm

_LARGE = 2**23  # weights of a decoder whose products are worth several threads


class NativeStep:
    """A packed copy of a decoder and its projection, and the modules from which it was made.

    Args:
        stack: the decoder.
        embedding: embedding of its tokens.
        output: projection to the vocabulary; None if tied.
    """

    def __init__(self, stack: Stack, embedding: TokenEmbedding, output: nn.Module | None) -> None:
        self._stack = stack
        calls = [layer for _ in range(stack.repeats) for layer in stack.layers]
        layers = cast(Sequence[TransformerLayer], calls)
        children = [layer.get_submodule(name) for layer in layers for name in layer.names]
        crossed = (each for each in children if isinstance(each, CrossAttention))
        self._sources = [each.key_value for each in crossed]
        bodies = [_body(layer, name) for layer in layers for name in layer.names]
        norms = stack.embedding_norm, stack.final_norm
        table = embedding.weight.detach()
        self.decoder = NativeDecoder(table, embedding.scale, bodies, *norms)
        scored = embedding if output is None else output
        self.scores: NativeMap | None = None
        """Scores of states (N, D) against the vocabulary (N, V); None: not by these kernels."""
        if isinstance(scored, TokenEmbedding) or type(scored) is Linear:
            weight, bias = cast(Linear, scored).weight, cast(Linear, scored).bias
            self.scores = NativeMap(weight, bias)

    @classmethod
    def of(cls, stack: Stack, embedding: nn.Module, output: nn.Module | None) -> NativeStep | None:
        """Return the step of a decoder with constant weights, or None if it cannot be expressed."""
        if native.library() is None or not _serves(stack, embedding):
            return None
        return cls(stack, cast(TokenEmbedding, embedding), output)

    def start(self, encoded: EncoderOutput, beam: int, max_length: int) -> NativeCache | None:
        """Return the state of a search, or None if operators have to do it.

        That is the case if gradients are wanted, if somebody watches a module, or where several
        threads share the products of a large model.

        Args:
            encoded: B encoded sentences.
            beam: number of hypotheses per sentence, K.
            max_length: largest number of steps.
        """
        stack = self._stack
        modules = stack.modules()
        watched = any(each._forward_hooks or each._forward_pre_hooks for each in modules)
        shared = torch.get_num_threads() > 1 and self.decoder.num_weights > _LARGE
        plain = encoded.hidden.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        other = encoded.adapters is not None or encoded.sets is not None
        if torch.is_grad_enabled() or stack.training or watched or shared or other or not plain:
            return None
        sources = [project(encoded.hidden) for project in self._sources]
        lengths = encoded.mask.sum(1)
        sizes = beam, max_length
        return NativeCache(self.decoder, sources, lengths, stack.positions, *sizes, self.scores)


def _body(layer: TransformerLayer, name: str) -> StepBody:
    """Return what the kernels need of a sub-layer."""
    residual = cast(Residual, layer.get_submodule(f"{name}_residual"))
    body = layer.get_submodule(name)
    around = residual.pre_norm, residual.norm, residual.scale
    if isinstance(body, FeedForward):
        maps = body.up, body.down
        return StepBody("feed_forward", *around, *maps, ACTIVATIONS[body.activation], (0, 0, 0))
    if isinstance(body, SelfAttention):
        shared = body.qkv.widths[1] // body.head_width
        heads = body.num_heads, shared, body.head_width
        return StepBody("self_attention", *around, body.qkv, body.output, (0, False), heads)
    assert isinstance(body, CrossAttention)
    heads = body.num_heads, body.key_value.widths[0] // body.head_width, body.head_width
    return StepBody("cross_attention", *around, body.query, body.output, (0, False), heads)


def _serves(stack: Stack, embedding: nn.Module) -> bool:
    """Return whether the kernels can express a decoder: the standard parts, float32, on a CPU."""
    if type(embedding) is not TokenEmbedding or embedding.factor is not None:
        return False
    if stack.bias is not None or stack.find_ways is not None:
        return False
    if type(stack.positions) not in (type(None), SinusoidalPositions, LearnedPositions):
        return False
    norms = [norm for norm in (stack.embedding_norm, stack.final_norm) if norm is not None]
    bodies: list[nn.Module] = []
    for layer in stack.layers:
        for name in cast(TransformerLayer, layer).names:
            residual = layer.get_submodule(f"{name}_residual")
            if type(residual) is not Residual:
                return False
            norms.append(residual.norm)
            bodies.append(layer.get_submodule(name))
    weights = [embedding.weight, *(p for each in (*norms, *bodies) for p in each.parameters())]
    return (
        all(map(_is_norm, norms))
        and all(map(_is_body, bodies))
        and all(w.dtype == torch.float32 and w.device.type == "cpu" for w in weights)
        and embedding.weight.size(1) % native.LANES == 0
    )


def _is_norm(norm: nn.Module) -> bool:
    return isinstance(norm, RmsNorm) or (isinstance(norm, nn.LayerNorm) and norm.elementwise_affine)


def _is_body(body: nn.Module) -> bool:
    """Return whether a body is a plain attention or feed-forward, of whole vectors."""
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
