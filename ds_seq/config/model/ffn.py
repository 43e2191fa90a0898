"""The feed-forwards of a model, both dense ones and experts."""

from __future__ import annotations

from pydantic import Field

from ds_seq.config.base import Probability
from ds_seq.config.model.linear import LinearFields
from ds_seq.config.model.stack import Width
from ds_seq.names import GATED_ACTIVATIONS, ActivationName

_MULTIPLE = 8  # kernels for half precision need multiples of 8


class FfnFields(LinearFields):
    """Width and activation."""

    ffn_dim: Width = Field(
        default=2048, description="Inner width of the feed-forwards and of each expert."
    )
    activation: ActivationName = Field(
        default="relu",
        description="Activation of the feed-forwards and of the experts. `glu`, `reglu`, `geglu`, "
        "`geglu_tanh` and `swiglu` multiply two projections, each `ffn_dim` wide.",
    )
    ffn_two_thirds: bool = Field(
        default=False,
        description="Make the feed-forwards of an activation with two projections two thirds as "
        "wide as `ffn_dim`, rounded up to a multiple of 8, so that they have about as many "
        "parameters as plain ones (Shazeer 2020).",
    )
    activation_dropout: Probability = Field(
        default=0.0, description="Dropout after the activation of the feed-forwards."
    )

    @property
    def is_gated(self) -> bool:
        """Whether the activation multiplies two projections."""
        return self.activation in GATED_ACTIVATIONS

    def inner_width(self, width: int) -> int:
        """Return the inner width of a feed-forward or expert whose `ffn_dim` is `width`."""
        return -(-2 * width // (3 * _MULTIPLE)) * _MULTIPLE if self.ffn_two_thirds else width

    def ffn_errors(self) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        if self.ffn_two_thirds and not self.is_gated:
            known = ", ".join(sorted(GATED_ACTIVATIONS))
            message = f"needs an activation with two projections ({known}), not {self.activation}"
            return [("ffn_two_thirds", message)]
        return []

    def ffn_params(self, d_model: int, width: int) -> int:
        """Return the parameters of a feed-forward or expert.

        Args:
            d_model: width of the model.
            width: its `ffn_dim`.
        """
        biases = (2 if self.is_gated else 1) * self.inner_width(width) + d_model
        return self.ffn_weights(d_model, width) + (biases if self.linear_bias else 0)

    def ffn_weights(self, d_model: int, width: int) -> int:
        """Return the weights of both maps of a feed-forward or expert, without biases."""
        up = 2 if self.is_gated else 1  # gated: two projections D -> F
        return (up + 1) * d_model * self.inner_width(width)
