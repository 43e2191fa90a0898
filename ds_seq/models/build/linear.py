"""Build the linear maps of attention and feed-forwards."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ds_seq.config.model import TransformerConfig
from ds_seq.config.model.linear import BitNetConfig
from ds_seq.modules.linear import Linear, LinearMaker

if TYPE_CHECKING:
    from ds_seq.modules.bitlinear import Bits


def linear_maker(cfg: TransformerConfig) -> LinearMaker:
    """Return what makes the maps of all layers; imported only if the model has such maps."""
    bits = make_bits(cfg)
    if bits is None:
        return Linear if cfg.linear_bias else partial(Linear, bias=False)
    from ds_seq.modules.bitlinear import BitLinear

    return partial(BitLinear, bits=bits, bias=cfg.linear_bias)


def make_bits(cfg: TransformerConfig) -> Bits | None:
    """Return how weights and inputs are rounded; None if they are not."""
    if not isinstance(cfg.linear, BitNetConfig):
        return None
    from ds_seq.modules.bitlinear import Bits

    return Bits(cfg.linear.weights, cfg.linear.activation_bits, cfg.linear.norm)
