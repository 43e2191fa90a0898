"""Position encodings: `positions: rotary`.

Each kind counts the parameters that it adds to one stack (`num_params`): all layers of a stack
share them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ds_seq.config.base import SHORT_FORM, Config, FieldErrors, NamedConfig, plugin_tag
from ds_seq.config.model.stack import Width
from ds_seq.names import RotaryScaling, SineWavelengths

ADDED_POSITIONS = ("sinusoidal", "learned", "none")
"""Positions that are added to the embeddings, or nowhere, so that they are no part of attention."""
Theta = Annotated[float, Field(gt=1.0, le=1e9)]


class AnyPositionsConfig(NamedConfig):
    """What holds for a kind of positions unless its section says otherwise."""

    def errors(self, d_model: int, head_dim: int) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs; any width is supported.

        Args:
            d_model: width of the model.
            head_dim: width of an attention head.
        """
        return []

    def num_params(self, d_model: int, max_positions: int, num_heads: int) -> int:
        """Return the number of parameters that a stack has for them; nothing is learned."""
        return 0


class SinusoidalConfig(AnyPositionsConfig):
    """Fixed sines and cosines, added to the embeddings (Vaswani et al. 2017)."""

    name: Literal["sinusoidal"] = Field(
        default="sinusoidal", description="Selects this position encoding."
    )
    offset: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=0, description="Position of the first token; 2 in models of fairseq."
    )
    wavelengths: SineWavelengths = Field(
        default="inclusive",
        description="Wavelengths grow from 2 pi to 20000 pi, `inclusive` as in tensor2tensor and "
        "fairseq, or `exclusive` as in the paper and Marian.",
    )

    def errors(self, d_model: int, head_dim: int) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        if d_model % 2:
            return [("d_model", f"sinusoidal positions need an even width, not {d_model}")]
        return []


class LearnedConfig(AnyPositionsConfig):
    """A learned vector per position, added to the embeddings."""

    name: Literal["learned"] = Field(
        default="learned", description="Selects this position encoding."
    )

    def num_params(self, d_model: int, max_positions: int, num_heads: int) -> int:
        """Return the number of parameters of the position table of a stack."""
        return max_positions * d_model


class NoPositionsConfig(AnyPositionsConfig):
    """No positions: a decoder still knows how many tokens it sees (Haviv et al. 2022)."""

    name: Literal["none"] = Field(default="none", description="Selects no position encoding.")


class RotaryConfig(AnyPositionsConfig):
    """Rotation of the queries and keys of self-attention by their position (Su et al. 2021)."""

    name: Literal["rotary"] = Field(default="rotary", description="Selects this position encoding.")
    theta: Theta = Field(default=10000.0, description="Base of the angles.")
    interleaved: bool = Field(
        default=False,
        description="Rotate neighboring features (2i, 2i + 1), as in the paper, and not the first "
        "half of a head with the second.",
    )
    scaling: RotaryScaling = Field(
        default="none",
        description="How angles change for texts longer than those of the training: `linear` "
        "interpolation, `ntk` or `yarn`.",
    )
    factor: Annotated[float, Field(ge=1.0, le=1e4)] = Field(
        default=1.0, description="By how much texts are longer, for `scaling`."
    )
    original_length: Width | None = Field(
        default=None, description="Longest text of the training in tokens, for `scaling: yarn`."
    )

    @model_validator(mode="after")
    def _check_scaling(self) -> RotaryConfig:
        if self.scaling == "none" and self.factor != 1.0:
            raise FieldErrors([("factor", "needs a scaling: linear, ntk or yarn")])
        if (self.scaling == "yarn") != (self.original_length is not None):
            message = "is needed with scaling yarn, and only with it"
            raise FieldErrors([("original_length", message)])
        return self

    def errors(self, d_model: int, head_dim: int) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        return _odd_head("rotary", head_dim)


class XPosConfig(AnyPositionsConfig):
    """A rotation with a decay by distance (Sun et al. 2022); encoders only rotate."""

    name: Literal["xpos"] = Field(default="xpos", description="Selects this position encoding.")
    theta: Theta = Field(default=10000.0, description="Base of the angles.")
    scale_base: Annotated[float, Field(gt=0.0, le=1e6)] = Field(
        default=512.0, description="Distance in tokens over which scores decay by one step."
    )
    interleaved: bool = Field(
        default=True,
        description="Rotate neighboring features (2i, 2i + 1), and not the first half of a head "
        "with the second.",
    )

    def errors(self, d_model: int, head_dim: int) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        return _odd_head("xpos", head_dim)


class AlibiConfig(AnyPositionsConfig):
    """A fixed penalty of attention scores per distance (Press et al. 2021)."""

    name: Literal["alibi"] = Field(default="alibi", description="Selects this position encoding.")


class BucketsConfig(AnyPositionsConfig):
    """A learned bias of attention scores per range of distances (T5, Raffel et al. 2020)."""

    name: Literal["buckets"] = Field(
        default="buckets", description="Selects this position encoding."
    )
    num_buckets: Annotated[int, Field(ge=4, le=10_000, multiple_of=4)] = Field(
        default=32, description="Number of ranges of distances; a multiple of 4."
    )
    max_distance: Annotated[int, Field(ge=2, le=1_000_000)] = Field(
        default=128, description="Distance in tokens from which on all share a range."
    )

    @model_validator(mode="after")
    def _check_distance(self) -> BucketsConfig:
        if 2 * self.max_distance <= self.num_buckets:
            message = f"must be above half of num_buckets ({self.num_buckets})"
            raise FieldErrors([("max_distance", message)])
        return self

    def num_params(self, d_model: int, max_positions: int, num_heads: int) -> int:
        """Return the number of parameters of the table of a stack."""
        return self.num_buckets * num_heads


def _odd_head(name: str, head_dim: int) -> list[tuple[str, str]]:
    if head_dim % 2:
        needs = f"{name} rotates pairs of features, so the width of a head must be even"
        return [("positions", f"{needs}, not {head_dim}")]
    return []


PositionsConfig = Annotated[
    Annotated[SinusoidalConfig, Tag("sinusoidal")]
    | Annotated[LearnedConfig, Tag("learned")]
    | Annotated[NoPositionsConfig, Tag("none")]
    | Annotated[RotaryConfig, Tag("rotary")]
    | Annotated[XPosConfig, Tag("xpos")]
    | Annotated[AlibiConfig, Tag("alibi")]
    | Annotated[BucketsConfig, Tag("buckets")],
    Discriminator(plugin_tag("sinusoidal")),
    SHORT_FORM,
]


class PositionFields(Config):
    """Kind and number of positions."""

    positions: PositionsConfig = Field(  # see `norm.py`
        default=SinusoidalConfig.model_construct(), description="Position encoding."
    )
    max_positions: Width = Field(default=1024, description="Maximum sentence length in subwords.")
