"""The feed-forwards of a model, both dense ones and experts."""

from __future__ import annotations

from pydantic import Field

from ds_seq.config.base import Config, Probability
from ds_seq.config.model.stack import Width
from ds_seq.names import GATED_ACTIVATIONS, ActivationName


class FfnFields(Config):
    """Width and activation."""

    ffn_dim: Width = Field(
        default=2048, description="Inner width of the feed-forwards and of each expert."
    )
    activation: ActivationName = Field(
        default="relu", description="Activation of the feed-forwards and of the experts."
    )
    activation_dropout: Probability = Field(
        default=0.0, description="Dropout after the activation of the feed-forwards."
    )

    def ffn_params(self, d_model: int, width: int) -> int:
        """Return the parameters of a feed-forward or expert of inner width `width`, with biases."""
        up = 2 if self.activation in GATED_ACTIVATIONS else 1  # gated: two projections D -> F
        return up * (d_model + 1) * width + (width + 1) * d_model
