"""The kind of the linear maps of a model's layers: `linear: bitnet`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from ds_seq.config.base import SHORT_FORM, Config, NamedConfig, plugin_tag
from ds_seq.names import BitNorm, BitWeights

WEIGHT_BITS: dict[BitWeights, float] = {"ternary": 1.6, "binary": 1.0}
"""Bits of a weight in a packed export."""


class FloatLinearConfig(NamedConfig):
    """Weights and inputs as they are, in floating point."""

    name: Literal["float"] = Field(default="float", description="Selects these maps.")

    @property
    def packed_bits(self) -> float | None:
        """Bits of a weight in a packed export; None, as there is none."""
        return None


class BitNetConfig(NamedConfig):
    """Maps with weights of one or two bits and rounded inputs, trained so from the start.

    Training keeps full-precision weights, which gradients change as if nothing was rounded.
    """

    name: Literal["bitnet"] = Field(default="bitnet", description="Selects these maps.")
    weights: BitWeights = Field(
        default="ternary",
        description="Values of a weight: `ternary`, -1, 0 and 1 (BitNet b1.58, Ma et al. 2024), or "
        "`binary`, -1 and 1 (BitNet, Wang et al. 2023), times one scale per matrix.",
    )
    activation_bits: int | None = Field(
        default=8,
        ge=2,
        le=8,
        description="Bits to which the inputs of a map are rounded, with one scale per token; "
        "null: not rounded.",
    )
    norm: BitNorm = Field(
        default="rms",
        description="Norm, without parameters, of the inputs before they are rounded: `rms`, "
        "`layer` or `none`.",
    )

    @property
    def packed_bits(self) -> float | None:
        """Bits of a weight in a packed export."""
        return WEIGHT_BITS[self.weights]


LinearConfig = Annotated[
    Annotated[FloatLinearConfig, Tag("float")] | Annotated[BitNetConfig, Tag("bitnet")],
    Discriminator(plugin_tag("float")),
    SHORT_FORM,
]


class LinearFields(Config):
    """The linear maps of attention, feed-forwards and experts."""

    linear_bias: bool = Field(
        default=True,
        description="Biases in the linear maps of attention, feed-forwards and experts; T5 and "
        "Llama have none.",
    )

    # `model_construct` and not a call, which would build a schema during the import
    linear: LinearConfig = Field(
        default=FloatLinearConfig.model_construct(),
        description="Linear maps of attention, feed-forwards and experts. Embeddings, the output "
        "projection and routers are always `float`.",
    )
