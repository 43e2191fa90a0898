"""Position encodings: `positions: rotary`.

Each kind counts the parameters that it adds to one stack (`num_params`): embeddings are added
before the first layer, parameters of self-attention occur in each of the `num_layers` layers.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from ds_seq.config.base import SHORT_FORM, Config, NamedConfig, plugin_tag
from ds_seq.config.model.stack import Width


class SinusoidalConfig(NamedConfig):
    """Fixed sines and cosines, added to the embeddings (Vaswani et al. 2017)."""

    name: Literal["sinusoidal"] = Field(
        default="sinusoidal", description="Selects this position encoding."
    )

    def errors(self, d_model: int, num_heads: int) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        if d_model % 2:
            return [("d_model", f"sinusoidal positions need an even width, not {d_model}")]
        return []

    def num_params(self, d_model: int, max_positions: int, num_heads: int, num_layers: int) -> int:
        """Return 0: nothing is learned."""
        return 0


class LearnedConfig(NamedConfig):
    """A learned vector per position, added to the embeddings."""

    name: Literal["learned"] = Field(
        default="learned", description="Selects this position encoding."
    )

    def errors(self, d_model: int, num_heads: int) -> list[tuple[str, str]]:
        """Return no errors: any width is supported."""
        return []

    def num_params(self, d_model: int, max_positions: int, num_heads: int, num_layers: int) -> int:
        """Return the number of parameters of the position table of a stack."""
        return max_positions * d_model


class RotaryConfig(NamedConfig):
    """Rotation of the queries and keys of self-attention by their position (Su et al. 2021)."""

    name: Literal["rotary"] = Field(default="rotary", description="Selects this position encoding.")

    def errors(self, d_model: int, num_heads: int) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        width, rest = divmod(d_model, num_heads)
        if width % 2 and not rest:  # a remainder is reported by `num_heads`
            return [
                (
                    "positions",
                    "rotary rotates pairs of features, so d_model / num_heads must be even, "
                    f"not {width}",
                )
            ]
        return []

    def num_params(self, d_model: int, max_positions: int, num_heads: int, num_layers: int) -> int:
        """Return 0: nothing is learned."""
        return 0


PositionsConfig = Annotated[
    Annotated[SinusoidalConfig, Tag("sinusoidal")]
    | Annotated[LearnedConfig, Tag("learned")]
    | Annotated[RotaryConfig, Tag("rotary")],
    Discriminator(plugin_tag("sinusoidal")),
    SHORT_FORM,
]


class PositionFields(Config):
    """Kind and number of positions."""

    positions: PositionsConfig = Field(  # see `norm.py`
        default=SinusoidalConfig.model_construct(), description="Position encoding."
    )
    max_positions: Width = Field(default=1024, description="Maximum sentence length in subwords.")
