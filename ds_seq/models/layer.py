"""A layer is a list of sub-layers (Vaswani et al., 2017), in an encoder and in a decoder.

Self-attention and feed-forward make an encoder layer, cross-attention between them a decoder
layer; adapters, other mixers or a second feed-forward are more entries of the list.

Shapes: B batch, T length, K beam width, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from ds_seq.models.output import LayerResult
from ds_seq.models.sublayer import SubLayer
from ds_seq.modules.body import Body, BodyOutput, Context, Past
from ds_seq.modules.kv_cache import BeamPaths
from ds_seq.modules.residual import Residual
from ds_seq.moe.calls import moe_calls
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.moe.output import MoeAux


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
