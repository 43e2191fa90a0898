"""The kind of norm: `norm: rms`, or `norm: {name: rms, eps: 1e-5}`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from ds_seq.config.base import SHORT_FORM, Config, NamedConfig, plugin_tag


class LayerNormConfig(NamedConfig):
    """Layer norm (Ba et al. 2016): mean 0 and variance 1, then a learned scale and shift."""

    name: Literal["layer"] = Field(default="layer", description="Selects this norm.")
    eps: float = Field(default=1e-5, gt=0.0, le=1.0, description="Added to the variance.")

    def num_params(self, d_model: int) -> int:
        """Return the number of parameters: scale and shift."""
        return 2 * d_model


class RmsNormConfig(NamedConfig):
    """Root mean square norm (Zhang and Sennrich 2019): divides, then a learned scale; no mean."""

    name: Literal["rms"] = Field(default="rms", description="Selects this norm.")
    eps: float = Field(default=1e-6, gt=0.0, le=1.0, description="Added to the mean square.")

    def num_params(self, d_model: int) -> int:
        """Return the number of parameters: the scale."""
        return d_model


NormConfig = Annotated[
    Annotated[LayerNormConfig, Tag("layer")] | Annotated[RmsNormConfig, Tag("rms")],
    Discriminator(plugin_tag("layer")),
    SHORT_FORM,
]


class NormFields(Config):
    """The norm of all sub-layers and at the end of a stack."""

    # `model_construct` and not a call, which would build a schema during the import
    norm: NormConfig = Field(default=LayerNormConfig.model_construct(), description="Kind of norm.")
