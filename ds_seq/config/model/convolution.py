"""Convolutions in place of a stack's self-attention: `decoder_mixer: dynamic_convolution`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ds_seq.config.base import NamedConfig, Probability
from ds_seq.config.model.stack import Width

KernelSize = Annotated[int, Field(ge=1, le=10_000)]
_FIRST_SIZES, _FURTHER_SIZE = (3, 7, 15), 31  # of Wu et al. (2019)


class AnyConvolutionConfig(NamedConfig):
    """A depthwise convolution whose kernels are shared by the channels of a head.

    A decoder's kernel covers a token and those before it, an encoder's has the token in its middle.
    """

    kernel_sizes: list[KernelSize] | None = Field(
        default=None,
        min_length=1,
        description="Tokens under the kernel of each layer, or one number for all layers; null: 3, "
        "7 and 15, then 31 in all further layers, as in the paper.",
    )
    num_heads: Width | None = Field(
        default=None,
        description="Heads, each with a kernel for its share of the channels; null: "
        "`model.num_heads`.",
    )
    width: Width | None = Field(
        default=None, description="Channels of the convolution; null: `d_model`."
    )
    glu: bool = Field(
        default=True, description="A gated linear unit makes the channels, and not a linear map."
    )
    weight_softmax: bool = Field(
        default=True, description="Kernels pass through a softmax, so that each sums to 1."
    )
    weight_dropout: Probability | None = Field(
        default=None,
        description="Dropout on the weights of kernels, different at each token; null: "
        "`model.attention_dropout`.",
    )
    input_dropout: Probability = Field(
        default=0.0, description="Dropout on the input of the first map."
    )

    def sizes(self, layers: int) -> list[int]:
        """Return the size of the kernel of each layer of a stack of this depth."""
        if self.kernel_sizes is None:
            further = [_FURTHER_SIZE] * layers
            return [*_FIRST_SIZES, *further][:layers]
        return self.kernel_sizes * layers if len(self.kernel_sizes) == 1 else self.kernel_sizes

    def heads(self, num_heads: int) -> int:
        """Return the number of heads of a model whose `num_heads` is this."""
        return self.num_heads or num_heads

    def channels(self, d_model: int) -> int:
        """Return the channels of the convolution of a model of width `d_model`."""
        return self.width or d_model

    def dropped(self, attention_dropout: float) -> float:
        """Return the dropout on kernels of a model with this dropout on attention."""
        return attention_dropout if self.weight_dropout is None else self.weight_dropout

    def errors(self, d_model: int, num_heads: int, layers: int) -> list[tuple[str, str]]:
        """Return settings that do not fit the model as (field, message) pairs.

        Args:
            d_model: width of the model.
            num_heads: heads of its attentions.
            layers: layers of the stack.
        """
        heads, channels = self.heads(num_heads), self.channels(d_model)
        if channels % heads:
            return [("num_heads", f"{heads} does not divide the {channels} channels")]
        sizes = self.kernel_sizes or [0]
        if len(sizes) not in (1, layers):
            message = f"has {len(sizes)} sizes for {layers} layers; give one for each, or one"
            return [("kernel_sizes", message)]
        return []

    def size(self, d_model: int) -> tuple[int, int]:
        """Return the numbers of weights and biases of the maps into and out of the convolution."""
        channels = self.channels(d_model)
        inner = (2 if self.glu else 1) * channels
        return d_model * (inner + channels), inner + d_model

    def kernel_map(self, d_model: int, num_heads: int, size: int) -> int:
        """Return the weights of the map that makes a token's kernels; 0 if there is none.

        Args:
            d_model: width of the model.
            num_heads: heads of its attentions.
            size: size of the kernel.
        """
        return 0

    def kernel_params(self, d_model: int, num_heads: int, size: int) -> int:
        """Return the parameters of the kernels of a layer."""
        return self.kernel_map(d_model, num_heads, size)


class LightweightConvolutionConfig(AnyConvolutionConfig):
    """Lightweight convolution (Wu et al. 2019): a layer's kernels are the same at all tokens."""

    name: Literal["lightweight_convolution"] = Field(
        default="lightweight_convolution", description="Selects this mixer."
    )

    def kernel_params(self, d_model: int, num_heads: int, size: int) -> int:
        """Return the parameters of the kernels of a layer."""
        return self.heads(num_heads) * size


class DynamicConvolutionConfig(AnyConvolutionConfig):
    """Dynamic convolution (Wu et al. 2019): each token makes its own kernels."""

    name: Literal["dynamic_convolution"] = Field(
        default="dynamic_convolution", description="Selects this mixer."
    )

    def kernel_map(self, d_model: int, num_heads: int, size: int) -> int:
        """Return the weights of the map that makes a token's kernels, see the base class."""
        return self.channels(d_model) * self.heads(num_heads) * size
