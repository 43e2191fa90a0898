"""The kind of norm: `norm: layer`, or `norm: {name: layer, eps: 1e-6}`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ds_seq.config.base import SHORT_FORM, Config, NamedConfig


class LayerNormConfig(NamedConfig):
    """Layer norm (Ba et al. 2016): mean 0 and variance 1, then a learned scale and shift."""

    name: Literal["layer"] = Field(default="layer", description="Selects this norm.")
    eps: float = Field(default=1e-5, gt=0.0, le=1.0, description="Added to the variance.")

    def num_params(self, d_model: int) -> int:
        """Return the number of parameters: scale and shift."""
        return 2 * d_model


# with a second norm this becomes a union, as in `positions.py`
NormConfig = Annotated[LayerNormConfig, SHORT_FORM]


class NormFields(Config):
    """The norm of all sub-layers and at the end of a stack."""

    # `model_construct` and not a call, which would build a schema during the import
    norm: NormConfig = Field(default=LayerNormConfig.model_construct(), description="Kind of norm.")
