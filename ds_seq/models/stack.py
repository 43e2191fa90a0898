"""Encoder or decoder: positions, dropout, a stack of layers, and the last norm.

A layer is a list of sub-layers (Vaswani et al., 2017). Self-attention and feed-forward make an
encoder layer, cross-attention between them a decoder layer; adapters, other mixers or a second
feed-forward are more entries of the list.

Losses of sparse layers are collected call by call from return values, and what decoding remembers
is kept call by call as well, so the same layer may stand in a stack more than once. The same goes
for hidden states and attention maps, where they are asked for: return values alone pass activation
checkpointing and ZeRO-3 unharmed.

Shapes: B batch, T length, K beam width, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ds_seq.models.cache import DecoderCache
from ds_seq.models.output import LayerResult, StackResult
from ds_seq.modules.body import Body, BodyOutput, Context, Past
from ds_seq.modules.kv_cache import BeamPaths
from ds_seq.modules.residual import Residual, dropout
from ds_seq.moe.calls import moe_calls
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.moe.output import MoeAux
from ds_seq.names import Capture


class SubLayer(NamedTuple):
    """A body in its residual. A value and no module: a layer registers both under its own names."""

    residual: Residual
    """Joins what goes in and what comes out; brings norm and dropout."""
    body: Body
    """Attention, feed-forward, or whatever else has this interface."""


class TransformerLayer(nn.Module):
    """Sub-layers, one after the other.

    A body is the child `NAME` of its layer and its residual the child `NAME_residual`; so
    parameters are called `feed_forward.up.weight` or `feed_forward_residual.norm.weight`.

    Args:
        sublayers: by name, in the order in which they are called.
    """

    def __init__(self, sublayers: Mapping[str, SubLayer]) -> None:
        super().__init__()
        self.names = tuple(sublayers)
        for name, (residual, body) in sublayers.items():
            self.add_module(name, cast(nn.Module, body))
            self.add_module(f"{name}_residual", residual)

    def _sublayers(self) -> Iterator[tuple[str, Residual, Body]]:
        # looked up in every call, so that a child may be replaced by another
        modules = self._modules
        for name in self.names:
            yield name, cast(Residual, modules[f"{name}_residual"]), cast(Body, modules[name])

    def forward(self, x: Tensor, context: Context) -> LayerResult:
        """Transform x (B, T, D)."""
        aux: list[MoeAux] = []
        maps: dict[str, Tensor] = {}
        for name, residual, body in self._sublayers():
            output: BodyOutput = body(residual.enter(x), context)
            x = residual.leave(x, output.y)
            if output.aux is not None:
                aux.append(output.aux)
            if output.map is not None:
                maps[name] = output.map
        return LayerResult(x, tuple(aux), maps)

    def moe_calls(self) -> list[MoeFeedForward]:
        """The sparse feed-forwards in the order of `LayerResult.aux`: once per call."""
        bodies = (cast(nn.Module, body) for _, _, body in self._sublayers())
        return [sparse for body in bodies for sparse in moe_calls(body)]

    def start_pasts(self, context: Context, paths: BeamPaths) -> list[Past | None]:
        """What one call of the layer is going to remember, one entry per sub-layer.

        Args:
            context: with the encoded source, where there is one.
            paths: of the searches, see `Body.start_past`.
        """
        return [body.start_past(context, paths) for _, _, body in self._sublayers()]

    def step(self, x: Tensor, pasts: Sequence[Past | None], context: Context) -> Tensor:
        """Transform the newest token of each hypothesis.

        Args:
            x: (B, K, D).
            pasts: what `start_pasts` has returned for this call; they are extended.
            context: without the source.

        Returns:
            (B, K, D).
        """
        for (_, residual, body), past in zip(self._sublayers(), pasts, strict=True):
            x = residual.leave(x, body.step(residual.enter(x), past, context))
        return x


class Stack(nn.Module):
    """Layers with what goes before and after them.

    Args:
        layers: in the order in which they are called.
        positions: adds position rows to the embedded tokens; None when the layers see to it.
        final_norm: normalizes the output (pre-norm stacks), or None (post-norm stacks).
        dropout: on the embedded tokens.
        checkpointing: recompute each layer in the backward pass instead of keeping activations.
    """

    def __init__(
        self,
        layers: Sequence[TransformerLayer],
        positions: nn.Module | None,
        final_norm: nn.Module | None,
        dropout: float,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.positions = positions
        self.final_norm = final_norm
        self.dropout = dropout
        self.checkpointing = checkpointing

    def forward(self, x: Tensor, context: Context, capture: Capture = "none") -> StackResult:
        """Call every layer on whole sequences.

        Args:
            x: embedded tokens (B, T, D).
            context: what the layers may read besides.
            capture: what is wanted of each layer.
        """
        recompute = self.checkpointing and torch.is_grad_enabled()
        with_maps = capture == "attention"
        context = context._replace(with_maps=with_maps)
        collected: list[MoeAux] = []
        states: list[Tensor] = []
        maps: list[dict[str, Tensor]] = []
        x = self._start(x, 0, x.size(1))
        for layer in self.layers:
            result: LayerResult
            if recompute:
                result = checkpoint(layer, x, context, use_reentrant=False)
            else:
                result = layer(x, context)
            x = result.hidden
            collected.extend(result.aux)
            if capture != "none":
                states.append(x)
            if with_maps:
                maps.append(result.maps)
        return StackResult(self._finish(x), collected, tuple(states), tuple(maps))

    def start_cache(
        self, context: Context, like: Tensor, beam: int, max_length: int
    ) -> DecoderCache:
        """An empty cache for step-by-step decoding.

        Args:
            context: with the encoded source, where there is one.
            like: (B, ...), gives the number of sentences, dtype and device.
            beam: K, hypotheses of each sentence.
            max_length: the most steps that will be made.
        """
        paths = BeamPaths(like.size(0), beam, max_length, like)
        pasts = [layer.start_pasts(context, paths) for layer in self._layers()]
        # what pasts hold is not handed on, and nobody looks at losses of a search
        return DecoderCache(pasts, context._replace(source=None, with_aux=False), paths)

    def step(self, x: Tensor, cache: DecoderCache) -> Tensor:
        """Decode the next embedded token (B, K, D) of every hypothesis; returns (B, K, D)."""
        cache.advance()
        x = self._start(x, cache.length - 1, 1)
        for layer, pasts in zip(self._layers(), cache.pasts, strict=True):
            x = layer.step(x, pasts, cache.context)
        return self._finish(x)

    def moe_calls(self) -> list[MoeFeedForward]:
        """The sparse feed-forwards in the order of `StackResult.aux`: once per call."""
        return [sparse for layer in self._layers() for sparse in layer.moe_calls()]

    def _layers(self) -> Sequence[TransformerLayer]:
        return cast(Sequence[TransformerLayer], self.layers)

    def _start(self, x: Tensor, first_position: int, length: int) -> Tensor:
        if self.positions is not None:
            x = self.positions(x, first_position, length)
        return dropout(x, self.dropout, self.training)

    def _finish(self, x: Tensor) -> Tensor:
        return x if self.final_norm is None else self.final_norm(x)
