"""How a sub-layer joins the stream of hidden states."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ds_seq.config.base import Config


class ResidualFields(Config):
    """Where the norms stand."""

    norm_position: Literal["pre", "post"] = Field(
        default="post",
        description="Norm before each sub-layer (steadier) or after the residual sum (the "
        "Transformer of 2017).",
    )

    def residual_params(self, num_sublayers: int, norm_params: int) -> int:
        """Parameters of the norms of one stack.

        Args:
            num_sublayers: over all its layers; each has one norm.
            norm_params: of one norm.
        """
        # what leaves the last layer has been normed already where norms stand after the sum
        final = 1 if self.norm_position == "pre" else 0
        return (num_sublayers + final) * norm_params
