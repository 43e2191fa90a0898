"""The residual connection around each sub-layer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ds_seq.config.base import Config, Probability
from ds_seq.config.model.depth import DepthScale, deepnorm, subln
from ds_seq.names import Stack


class ResidualFields(Config):
    """Position of the norms, scales for deep models, and layers that are left out in training."""

    norm_position: Literal["pre", "post", "deepnorm", "subln"] = Field(
        default="post",
        description="Norm before each sub-layer (`pre`, more stable) or after the residual sum "
        "(`post`, the original Transformer). For deep models: `deepnorm` is `post` with a larger "
        "residual and smaller initial weights (Wang et al. 2022); `subln` is `pre` with further "
        "norms within self-attention and feed-forward and larger initial weights (Magneto).",
    )
    deepnorm_init: Literal["paper", "torchscale"] = Field(
        default="paper",
        description="Scale of the initial encoder with `deepnorm`: the paper's, or the one of "
        "TorchScale's code.",
    )
    layer_drop: Probability = Field(
        default=0.0,
        description="Probability in training that a batch skips a layer (LayerDrop, Fan et al. "
        "2020); layers can then be left out at generation (`--encoder-layers-to-keep`).",
    )
    drop_path: Probability = Field(
        default=0.0,
        description="Probability in training that a sentence skips a sub-layer of the last layer "
        "(stochastic depth, Huang et al. 2016); it rises linearly from 0 in the first layer.",
    )

    @property
    def normalizes_first(self) -> bool:
        """Whether norms precede the sub-layers."""
        return self.norm_position in ("pre", "subln")

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm follows the last layer: with `post`, its output is already normalized."""
        return self.normalizes_first

    @property
    def has_inner_norms(self) -> bool:
        """Whether there are norms within self-attention and feed-forwards."""
        return self.norm_position == "subln"

    def residual_errors(self) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        if self.deepnorm_init != "paper" and self.norm_position != "deepnorm":
            return [("deepnorm_init", "applies to norm_position deepnorm; leave it out")]
        return []

    def depth_scale(self, stack: Stack, encoder_layers: int, decoder_layers: int) -> DepthScale:
        """Return the scales of one stack; 0 layers for a model without a stack."""
        if self.norm_position == "deepnorm":
            as_torchscale = self.deepnorm_init == "torchscale"
            return deepnorm(stack, encoder_layers, decoder_layers, as_torchscale)
        if self.norm_position == "subln":
            return subln(stack, encoder_layers, decoder_layers)
        return DepthScale()

    def residual_params(self, num_sublayers: int, norm_params: int) -> int:
        """Return the number of parameters of the norms of one stack, inner norms not included.

        Args:
            num_sublayers: number of sub-layers in all layers; each has one norm.
            norm_params: number of parameters of one norm.
        """
        final = 1 if self.has_final_norm else 0
        return (num_sublayers + final) * norm_params
