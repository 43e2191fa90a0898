"""How the model knows the order of the tokens: `positions: rotary`.

Each kind counts the parameters that it adds to one stack (`num_params`): rows stand before the
first layer; what belongs to self-attention is in each of its `num_layers` layers.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from ds_seq.config.base import SHORT_FORM, Config, NamedConfig, PositiveInt, plugin_tag


class SinusoidalConfig(NamedConfig):
    """Fixed sines and cosines, added to the embeddings (Vaswani et al. 2017)."""

    name: Literal["sinusoidal"] = Field(default="sinusoidal", description="These positions.")

    def errors(self, d_model: int, num_heads: int) -> list[tuple[str, str]]:
        """What does not go together, as (field, message)."""
        if d_model % 2:
            return [("d_model", f"sinusoidal positions need an even width, not {d_model}")]
        return []

    def num_params(self, d_model: int, max_positions: int, num_heads: int, num_layers: int) -> int:
        """None are learned."""
        return 0


class LearnedConfig(NamedConfig):
    """A learned row for each position, added to the embeddings."""

    name: Literal["learned"] = Field(default="learned", description="These positions.")

    def errors(self, d_model: int, num_heads: int) -> list[tuple[str, str]]:
        """Any width will do."""
        return []

    def num_params(self, d_model: int, max_positions: int, num_heads: int, num_layers: int) -> int:
        """The rows of a stack."""
        return max_positions * d_model


class RotaryConfig(NamedConfig):
    """Queries and keys of self-attention are turned by their position (Su et al. 2021)."""

    name: Literal["rotary"] = Field(default="rotary", description="These positions.")

    def errors(self, d_model: int, num_heads: int) -> list[tuple[str, str]]:
        """What does not go together, as (field, message)."""
        width, rest = divmod(d_model, num_heads)
        if width % 2 and not rest:  # a rest is reported by the heads
            return [
                (
                    "positions",
                    "rotary turns pairs of features, so d_model / num_heads must be even, "
                    f"not {width}",
                )
            ]
        return []

    def num_params(self, d_model: int, max_positions: int, num_heads: int, num_layers: int) -> int:
        """None are learned."""
        return 0


PositionsConfig = Annotated[
    Annotated[SinusoidalConfig, Tag("sinusoidal")]
    | Annotated[LearnedConfig, Tag("learned")]
    | Annotated[RotaryConfig, Tag("rotary")],
    Discriminator(plugin_tag("sinusoidal")),
    SHORT_FORM,
]


class PositionFields(Config):
    """Kind of positions, and how many there are."""

    positions: PositionsConfig = Field(
        default=SinusoidalConfig(),
        description="How the model knows the order of the tokens.",
    )
    max_positions: PositiveInt = Field(
        default=1024, description="Longest sentence the model can take, in subwords."
    )
