"""The residual connection around each sub-layer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ds_seq.config.base import Config


class ResidualFields(Config):
    """Position of the norms."""

    norm_position: Literal["pre", "post"] = Field(
        default="post",
        description="Norm before each sub-layer (more stable) or after the residual sum (the "
        "original Transformer).",
    )

    def residual_params(self, num_sublayers: int, norm_params: int) -> int:
        """Return the number of parameters of the norms of one stack.

        Args:
            num_sublayers: number of sub-layers in all layers; each has one norm.
            norm_params: number of parameters of one norm.
        """
        # with `post`, the output of the last layer is already normalized
        final = 1 if self.norm_position == "pre" else 0
        return (num_sublayers + final) * norm_params
