"""Encoder or decoder: positions, dropout, a stack of layers, and the final norm.

A layer is a list of sub-layers (Vaswani et al., 2017). An encoder layer has self-attention and a
feed-forward, a decoder layer also has cross-attention between them; adapters, other mixers or a
second feed-forward are further entries of the list.

Losses of sparse layers, captured hidden states and attention maps are passed as return values,
which work with activation checkpointing and ZeRO-3. They and the states of decoding are stored per
call, so the same layer may occur in a stack several times.

Shapes: B batch, T length, K beam width, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ds_seq.models.cache import DecoderCache
from ds_seq.models.output import LayerResult, StackResult
from ds_seq.modules.body import Body, BodyOutput, Context, Past
from ds_seq.modules.kv_cache import BeamPaths
from ds_seq.modules.linear import by_set
from ds_seq.modules.position_bias import Window
from ds_seq.modules.residual import Residual, dropout
from ds_seq.moe.calls import moe_calls
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.moe.output import MoeAux
from ds_seq.names import Capture

if TYPE_CHECKING:
    from ds_seq.modules.multiway import Ways


class SubLayer(NamedTuple):
    """A body and its residual. Not a module: a layer registers both under its own names."""

    residual: Residual
    """Adds the body's input to its output, with norm and dropout; or leaves that to the body."""
    body: Body
    """Attention, feed-forward, or any other module with this interface."""


class TransformerLayer(nn.Module):
    """A sequence of sub-layers.

    A body is the child `NAME` of its layer, and its residual is the child `NAME_residual`, so there
    are parameters such as `feed_forward.up.weight` and `feed_forward_residual.norm.weight`.

    Args:
        sublayers: sub-layers by name, in the order of the calls.
    """

    def __init__(self, sublayers: Mapping[str, SubLayer]) -> None:
        super().__init__()
        self.names = tuple(sublayers)
        for name, (residual, body) in sublayers.items():
            self.add_module(name, cast(nn.Module, body))
            self.add_module(f"{name}_residual", residual)

    def _sublayers(self) -> Iterator[tuple[str, Residual, Body]]:
        # looked up in every call, so that a child may be replaced
        modules = self._modules
        for name in self.names:
            yield name, cast(Residual, modules[f"{name}_residual"]), cast(Body, modules[name])

    def forward(self, x: Tensor, context: Context) -> LayerResult:
        """Transform hidden states x (B, T, D)."""
        aux: list[MoeAux] = []
        maps: dict[str, Tensor] = {}
        ways = _given(context)
        for name, residual, body in self._sublayers():
            output: BodyOutput = body(residual.enter(x, *ways), context)
            x = residual.leave(x, output.y, *ways)
            if output.aux is not None:
                aux.append(output.aux)
            if output.map is not None:
                maps[name] = output.map
        return LayerResult(x, tuple(aux), maps)

    def moe_calls(self) -> list[MoeFeedForward]:
        """Return the sparse feed-forwards in the order of `LayerResult.aux`, one per call."""
        bodies = (cast(nn.Module, body) for _, _, body in self._sublayers())
        return [sparse for body in bodies for sparse in moe_calls(body)]

    def start_pasts(self, context: Context, paths: BeamPaths) -> list[Past | None]:
        """Return the initial state of one call of the layer, one entry per sub-layer.

        Args:
            context: context with the encoded source, if there is one.
            paths: paths of the beam searches, see `Body.start_past`.
        """
        return [body.start_past(context, paths) for _, _, body in self._sublayers()]

    def step(self, x: Tensor, pasts: Sequence[Past | None], context: Context) -> Tensor:
        """Transform the newest token of each hypothesis.

        Args:
            x: hidden states of the newest tokens, (B, K, D).
            pasts: states returned by `start_pasts` for this call; updated in place.
            context: context without the source.

        Returns:
            (B, K, D).
        """
        ways = _given(context)
        for (_, residual, body), past in zip(self._sublayers(), pasts, strict=True):
            x = residual.leave(x, body.step(residual.enter(x, *ways), past, context), *ways)
        return x


class Stack(nn.Module):
    """Layers, preceded by positions and dropout and followed by a norm.

    Args:
        layers: layers in the order of the calls.
        positions: module that adds positions to the embedded tokens; None if layers encode them.
        final_norm: norm of the output (pre-norm stacks), or None (post-norm stacks).
        dropout: probability of dropping an element of the embedded tokens in training.
        checkpointing: whether to recompute layers in the backward pass instead of storing their
            activations.
        layer_drop: probability that a batch skips a layer in training (Fan et al., 2020). A skipped
            layer is computed all the same: ranks draw differently, and all of them have to take
            part in the collectives of a layer.
        repeats: how often all layers are called one after the other.
        bias: `ds_seq.modules.position_bias.PositionBias` of the self-attentions of all layers, or
            None.
        embedding_norm: norm of the embedded tokens with their positions, or None.
        find_ways: sets of tokens (B, T) -> `Ways`, if layers and norms have several sets of
            parameters; else None.
    """

    def __init__(
        self,
        layers: Sequence[TransformerLayer],
        positions: nn.Module | None,
        final_norm: nn.Module | None,
        dropout: float,
        checkpointing: bool,
        layer_drop: float,
        repeats: int = 1,
        bias: nn.Module | None = None,
        embedding_norm: nn.Module | None = None,
        find_ways: Callable[[Tensor], Ways] | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.positions = positions
        self.final_norm = final_norm
        self.dropout = dropout
        self.checkpointing = checkpointing
        self.bias = bias
        self.layer_drop = layer_drop
        self.repeats = repeats
        self.embedding_norm = embedding_norm
        self.find_ways = find_ways

    def forward(self, x: Tensor, context: Context, capture: Capture = "none") -> StackResult:
        """Call every layer on whole sequences.

        Args:
            x: embedded tokens (B, T, D).
            context: what the layers may read in addition to the hidden states.
            capture: which outputs of the layers to return.
        """
        recompute = self.checkpointing and torch.is_grad_enabled()
        with_maps = capture == "attention"
        context = context._replace(with_maps=with_maps)
        context = self._positioned(context, x)
        collected: list[MoeAux] = []
        states: list[Tensor] = []
        maps: list[dict[str, Tensor]] = []
        x = self._start(x, 0, x.size(1), context.ways)
        for layer in self._calls():
            result: LayerResult
            if recompute:
                result = checkpoint(layer, x, context, use_reentrant=False)
            else:
                result = layer(x, context)
            x = self._kept(x, result.hidden)
            collected.extend(result.aux)
            if capture != "none":
                states.append(x)
            if with_maps:
                maps.append(result.maps)
        return StackResult(self._finish(x, context.ways), collected, tuple(states), tuple(maps))

    def start_cache(
        self, context: Context, like: Tensor, beam: int, max_length: int
    ) -> DecoderCache:
        """Return an empty cache for step-by-step decoding.

        Args:
            context: context with the encoded source, if there is one.
            like: (B, ...), tensor with the number of sentences, dtype and device of the cache.
            beam: number of hypotheses per sentence, K.
            max_length: largest number of steps.
        """
        paths = BeamPaths(like.size(0), beam, max_length, like)
        if self.bias is not None:
            paths.track_positions()
        pasts = [layer.start_pasts(context, paths) for layer in self._calls()]
        # the pasts hold the projected source, and search does not use losses
        context = context._replace(source=None, source_ways=None, with_aux=False)
        return DecoderCache(pasts, context, paths)

    def step(self, x: Tensor, cache: DecoderCache) -> Tensor:
        """Decode the next embedded token of every hypothesis, x (B, K, D); returns (B, K, D).

        In the first step, x may be (B, 1, D): one hypothesis stands for all of its sentence.
        """
        cache.advance(x.size(1))
        position, context = cache.length - 1, cache.context
        context = context._replace(ways=self.ways_of(context.sets, x.size(1)))
        x = self._start(x, position, 1, context.ways)
        if self.bias is not None:
            distances = (position - cache.paths.key_positions)[:, None]  # (B, 1, C)
            context = self._biased(context, distances, x)
        for layer, pasts in zip(self._calls(), cache.pasts, strict=True):
            x = layer.step(x, pasts, context)
        return self._finish(x, context.ways)

    def ways_of(self, sets: Tensor | None, length: int) -> Ways | None:
        """Return the ways of sentences of this length with these sets (B,); None without sets."""
        if sets is None or self.find_ways is None:
            return None
        return self.find_ways(sets[:, None].expand(-1, length))

    def moe_calls(self) -> list[MoeFeedForward]:
        """Return the sparse feed-forwards in the order of `StackResult.aux`, one per call."""
        return [sparse for layer in self._calls() for sparse in layer.moe_calls()]

    def _calls(self) -> Iterator[TransformerLayer]:
        """Iterate over the layers in the order of the calls."""
        for _ in range(self.repeats):
            yield from cast(Sequence[TransformerLayer], self.layers)

    def _start(
        self, x: Tensor, first_position: int, length: int, ways: Ways | None = None
    ) -> Tensor:
        if self.positions is not None:
            x = self.positions(x, first_position, length)
        if self.embedding_norm is not None:
            x = by_set(self.embedding_norm, x, ways)
        return dropout(x, self.dropout, self.training)

    def _kept(self, before: Tensor, after: Tensor) -> Tensor:
        """Return what a layer made of its input, or the input if the batch skips the layer."""
        if not self.training or self.layer_drop == 0.0:
            return after
        is_kept = torch.rand((), device=after.device) >= self.layer_drop
        return torch.where(is_kept, after, before)

    def _positioned(self, context: Context, x: Tensor) -> Context:
        """Return the context with what encodes the positions of whole sequences (B, T, D)."""
        if self.bias is None:
            return context
        if isinstance(self.bias, Window) and not context.with_maps:
            blocks = self.bias.blocks(x)
            if blocks is not None:
                return context._replace(local=blocks)
        places = torch.arange(x.size(1), device=x.device)
        return self._biased(context, places[:, None] - places, x)

    def _biased(self, context: Context, distances: Tensor, like: Tensor) -> Context:
        """Return the context with the bias of scores at these distances."""
        assert self.bias is not None
        return context._replace(position_bias=self.bias(distances).to(like.dtype))

    def _finish(self, x: Tensor, ways: Ways | None) -> Tensor:
        return x if self.final_norm is None else by_set(self.final_norm, x, ways)


def _given(context: Context) -> tuple[()] | tuple[Ways]:
    """Return the argument for the sets of parameters, which residuals without sets do not take."""
    return () if context.ways is None else (context.ways,)


def sum_losses(losses: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Add up losses of the same name."""
    total: dict[str, Tensor] = {}
    for by_name in losses:
        for name, loss in by_name.items():
            total[name] = total[name] + loss if name in total else loss
    return total


def real_rows(mask: Tensor, count: int | None = None) -> Tensor:
    """Return the rows (N,) int64, ascending, where `mask` (B, T) is True.

    Args:
        mask: the mask.
        count: N; None if unknown. Counting them makes the host wait for a GPU.
    """
    flat = mask.reshape(-1)
    found = flat.nonzero() if count is None else torch.nonzero_static(flat, size=count)
    return found.squeeze(1)


def layer_maps(result: StackResult, name: str) -> tuple[Tensor, ...]:
    """Return the attention maps of one sub-layer, from all layers that have it."""
    return tuple(maps[name] for maps in result.maps if name in maps)
