"""The dense position-wise feed-forward network.

Shapes: B batch, T tokens, D model width, F inner width.
"""

from __future__ import annotations

from torch import Tensor, nn

from ds_seq.modules.activations import find_activation
from ds_seq.modules.body import BodyOutput, Context, TokenwiseBody
from ds_seq.modules.linear import Linear, LinearMaker
from ds_seq.modules.residual import dropout


class FeedForward(TokenwiseBody):
    """`down(activation(up(x)))`, applied to each token independently.

    `relu` (Vaswani et al., 2017) and `gelu` use two matrices. A gated activation such as `swiglu`
    (Shazeer, 2020) multiplies `silu(gate(x))` by `value(x)`; gate and value are one fused matrix.
    Its inner width is also `ffn_dim`, so it has three matrices instead of two, i.e. 1.5 times the
    parameters; two thirds of the width (`model.ffn_two_thirds`) give an equal count.

    Args:
        d_model: width of input and output, D.
        ffn_dim: inner width, F.
        activation: name of an entry of `ds_seq.modules.activations`.
        dropout: probability of dropping an inner activation in training.
        inner_norm: norm of the inner activations (..., F), after dropout (SubLN), or None.
        make_linear: makes both maps, called like `Linear`.

    Raises:
        ValueError: unknown activation.
    """

    def __init__(
        self,
        d_model: int,
        ffn_dim: int,
        activation: str,
        dropout: float,
        inner_norm: nn.Module | None = None,
        make_linear: LinearMaker = Linear,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.dropout = dropout
        entry = find_activation(activation)
        self._fused, self._rest, parts = entry.fused, entry.rest, entry.num_parts
        self.up = make_linear(d_model, parts * ffn_dim, parts=parts)
        self.inner_norm = inner_norm
        self.down = make_linear(ffn_dim, d_model)

    def scale_parameters(self, factor: float) -> None:
        """Scale both initial maps, see `ds_seq.models.init`."""
        self.up.weight.mul_(factor)
        self.down.weight.mul_(factor)

    def forward(self, x: Tensor, context: Context | None = None) -> BodyOutput:
        """Transform x (B, T, D); the context is not used."""
        hidden = self.up(x, self._fused)
        if self._rest is not None:
            hidden = self._rest(hidden)
        hidden = dropout(hidden, self.dropout, self.training)
        if self.inner_norm is not None:
            hidden = self.inner_norm(hidden)
        return BodyOutput(self.down(hidden))
