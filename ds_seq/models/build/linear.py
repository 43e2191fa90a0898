"""Build the linear maps of attention and feed-forwards."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ds_seq.config.model import TransformerConfig
from ds_seq.config.model.linear import BitNetConfig
from ds_seq.modules.linear import Linear, LinearMaker

if TYPE_CHECKING:
    from ds_seq.modules.bitlinear import Bits


def linear_maker(cfg: TransformerConfig, sets: int = 1) -> LinearMaker:
    """Return what makes the maps of all layers; imported only if the model has such maps.

    Args:
        cfg: config of the model.
        sets: number of sets of parameters, each with a map of its own.
    """
    bits = make_bits(cfg)
    make: LinearMaker = Linear if cfg.linear_bias else partial(Linear, bias=False)
    if bits is not None:
        from ds_seq.modules.bitlinear import BitLinear

        make = partial(BitLinear, bits=bits, bias=cfg.linear_bias)
    if sets == 1:
        return make
    from ds_seq.modules.multiway import Multiway

    def make_all(*sizes: int, **options: Any) -> Any:
        return Multiway([make(*sizes, **options) for _ in range(sets)])

    return make_all


def make_bits(cfg: TransformerConfig) -> Bits | None:
    """Return how weights and inputs are rounded; None if they are not."""
    if not isinstance(cfg.linear, BitNetConfig):
        return None
    from ds_seq.modules.bitlinear import Bits

    return Bits(cfg.linear.weights, cfg.linear.activation_bits, cfg.linear.norm)
