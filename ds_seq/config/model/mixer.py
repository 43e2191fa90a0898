"""The layers that mix information between tokens: attention, retention, convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from ds_seq.config.base import SHORT_FORM, NamedConfig, Probability, plugin_tag, shown
from ds_seq.config.model.convolution import (
    AnyConvolutionConfig,
    DynamicConvolutionConfig,
    LightweightConvolutionConfig,
)
from ds_seq.config.model.dilated import DilatedConfig
from ds_seq.config.model.heads import HeadCounts, PrunedHeadsConfig
from ds_seq.config.model.linear import LinearFields
from ds_seq.config.model.retention import RetentionConfig
from ds_seq.config.model.stack import Width
from ds_seq.names import AttentionKind, Stack

_OF_ATTENTION = ("head_dim", "num_kv_heads", "query_key_norm")
MIXERS_PER_LAYER: Mapping[Stack, int] = {"encoder": 1, "decoder": 2}
"""A decoder layer attends to its own tokens and to the source."""


class AttentionMixerConfig(NamedConfig):
    """Multi-head attention (Vaswani et al. 2017), with the options of the model."""

    name: Literal["attention"] = Field(default="attention", description="Selects this mixer.")


MixerConfig = Annotated[
    Annotated[AttentionMixerConfig, Tag("attention")]
    | Annotated[DilatedConfig, Tag("dilated")]
    | Annotated[RetentionConfig, Tag("retention")]
    | Annotated[LightweightConvolutionConfig, Tag("lightweight_convolution")]
    | Annotated[DynamicConvolutionConfig, Tag("dynamic_convolution")],
    Discriminator(plugin_tag("attention")),
    SHORT_FORM,
]


class MixerFields(LinearFields):
    """Kinds of mixers, and multi-head attention."""

    encoder_mixer: MixerConfig = Field(  # see `norm.py`
        default=AttentionMixerConfig.model_construct(),
        description="How the tokens of the source see each other.",
    )
    decoder_mixer: MixerConfig = Field(
        default=AttentionMixerConfig.model_construct(),
        description="How the tokens of the target see those before them. The source is always "
        "seen through attention.",
    )

    num_heads: Width = Field(default=8, description="Attention heads.")
    head_dim: Width | None = Field(
        default=None, description="Width of an attention head; null: `d_model` / `num_heads`."
    )
    num_kv_heads: Width | None = Field(
        default=None,
        description="Heads of keys and values, each shared by several attention heads "
        "(grouped-query attention; 1: multi-query); null: as many as `num_heads`.",
    )
    query_key_norm: bool = Field(
        default=False, description="Norms on the queries and keys of each attention head."
    )
    attention_window: Width | None = Field(
        default=None,
        description="Self-attention sees only tokens closer than this many positions, on both "
        "sides in an encoder; null: all.",
    )
    pruned_heads: PrunedHeadsConfig | None = Field(
        default=None, description="Heads that were cut out by `ds-seq prune-heads`; null: none."
    )
    attention_dropout: Probability = Field(default=0.0, description="Dropout on attention weights.")

    def mixer_errors(self, d_model: int) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        if self.head_dim is None and d_model % self.num_heads:
            return [("num_heads", f"{self.num_heads} does not divide model.d_model {d_model}")]
        if self.num_kv_heads is not None and self.num_heads % self.num_kv_heads:
            message = f"{self.num_kv_heads} does not divide num_heads {self.num_heads}"
            return [("num_kv_heads", message)]
        return []

    def mixer_of(self, stack: Stack) -> MixerConfig:
        """Return how the tokens of a stack see each other."""
        return self.encoder_mixer if stack == "encoder" else self.decoder_mixer

    def retention_of(self, stack: Stack) -> RetentionConfig | None:
        """Return the retention of a stack; None if it has another mixer."""
        mixer = self.mixer_of(stack)
        return mixer if isinstance(mixer, RetentionConfig) else None

    def dilated_of(self, stack: Stack) -> DilatedConfig | None:
        """Return the dilated attention of a stack; None if it has another mixer."""
        mixer = self.mixer_of(stack)
        return mixer if isinstance(mixer, DilatedConfig) else None

    def convolution_of(self, stack: Stack) -> AnyConvolutionConfig | None:
        """Return the convolution of a stack; None if it has another mixer."""
        mixer = self.mixer_of(stack)
        return mixer if isinstance(mixer, AnyConvolutionConfig) else None

    def has_self_attention(self, stack: Stack) -> bool:
        """Return whether the tokens of a stack attend to each other, in segments or not."""
        return isinstance(self.mixer_of(stack), AttentionMixerConfig | DilatedConfig)

    def has_pairs(self, stack: Stack) -> bool:
        """Return whether the self-attention of a stack computes scores of all pairs of tokens."""
        return isinstance(self.mixer_of(stack), AttentionMixerConfig)

    def self_mixer_errors(self, d_model: int, layers: Mapping[Stack, int]) -> list[tuple[str, str]]:
        """Return settings of other mixers that do not fit the model as (field, message) pairs.

        Args:
            d_model: width of the model.
            layers: number of layers of each stack.
        """
        errors = []
        for stack in layers:
            mixer, found = self.mixer_of(stack), []
            if isinstance(mixer, RetentionConfig):
                found = mixer.errors(d_model, self.num_heads)
            elif isinstance(mixer, AnyConvolutionConfig):
                found = mixer.errors(d_model, self.num_heads, layers[stack])
            errors += [(f"{stack}_mixer.{field}", message) for field, message in found]
            attends = self.has_self_attention(stack)
            if not attends and self.pruned_heads and any(getattr(self.pruned_heads, stack)):
                message = f"there is no self-attention in this stack ({stack}_mixer: {mixer.name})"
                errors.append((f"pruned_heads.{stack}", message))
        if self.attention_window is not None and not any(map(self.has_pairs, layers)):
            message = "no stack has plain self-attention, and no other mixer a window; set it to "
            errors.append(("attention_window", message + "null"))
        return [*errors, *self._idle_errors(layers)]

    def _idle_errors(self, stacks: Iterable[Stack]) -> Iterator[tuple[str, str]]:
        """Yield options of attention in a model without any, in which they would do nothing."""
        stacks = list(stacks)
        if any(map(self.attentions_of, stacks)):
            return
        mixers = " and ".join(f"{stack}_mixer {self.mixer_of(stack).name}" for stack in stacks)
        # kernels take the dropout of attention if they have none of their own
        others = () if any(map(self.convolution_of, stacks)) else ("attention_dropout",)
        for field in (*_OF_ATTENTION, *others):
            value = vars(self)[field]
            if value != type(self).model_fields[field].default:
                message = f"{shown(value)} belongs to attention, which there is none of with "
                yield field, f"{message}{mixers}; leave it out"

    def head_width(self, d_model: int) -> int:
        """Return the width of an attention head of a model of width `d_model`."""
        return self.head_dim or d_model // self.num_heads

    def mixer_params(self, d_model: int, stack: Stack, norm_params: Callable[[int], int]) -> int:
        """Return the number of parameters of the mixers of one layer of `stack`, without kernels.

        Args:
            d_model: width of the model.
            stack: name of the stack.
            norm_params: number of parameters of a norm of a given width.
        """
        weights, biases = self._attention_size(d_model)
        attention = weights + (biases if self.linear_bias else 0)
        if self.query_key_norm:
            attention += 2 * norm_params(self.head_width(d_model))
        params, retention = self.attentions_of(stack) * attention, self.retention_of(stack)
        if retention is not None:
            weights, biases = retention.size(d_model)
            params += weights + (biases if self.linear_bias else 0)
        convolution = self.convolution_of(stack)
        if convolution is not None:
            weights, biases = convolution.size(d_model)
            params += weights + (biases if self.linear_bias else 0)
        return params

    def mixers_of(self, stack: Stack) -> int:
        """Return the number of mixers of a layer."""
        return MIXERS_PER_LAYER[stack]

    def attentions_of(self, stack: Stack) -> int:
        """Return the number of attentions of a layer."""
        return self.mixers_of(stack) - (0 if self.has_self_attention(stack) else 1)

    def mixer_weights(self, d_model: int, stack: Stack) -> int:
        """Return the weights of a layer's maps in mixers, without those that make kernels."""
        mixer, weights = self.mixer_of(stack), 0
        if isinstance(mixer, RetentionConfig | AnyConvolutionConfig):
            weights = mixer.size(d_model)[0]
        return self.attentions_of(stack) * self._attention_size(d_model)[0] + weights

    def kernel_maps(self, d_model: int, stack: Stack, layers: int) -> int:
        """Return the weights of the maps that make kernels, of all layers of a stack."""
        convolution, heads = self.convolution_of(stack), self.num_heads
        if convolution is None:
            return 0
        return sum(convolution.kernel_map(d_model, heads, k) for k in convolution.sizes(layers))

    def kernel_params(self, d_model: int, stack: Stack, layers: int) -> int:
        """Return the parameters of the kernels of all layers of a stack."""
        convolution, heads = self.convolution_of(stack), self.num_heads
        if convolution is None:
            return 0
        return sum(convolution.kernel_params(d_model, heads, k) for k in convolution.sizes(layers))

    def head_counts(self, d_model: int) -> HeadCounts:
        """Return the heads of an attention from which none was cut out."""
        sharing = self.num_heads // (self.num_kv_heads or self.num_heads)
        return HeadCounts(self.num_heads, sharing, self.head_width(d_model))

    def kept_heads(self, attention: AttentionKind, layer: int) -> list[int] | None:
        """Return the heads that the attention of a layer has; None: all."""
        pruned = [] if self.pruned_heads is None else self.pruned_heads.of(attention, layer)
        return [head for head in range(self.num_heads) if head not in pruned] if pruned else None

    def pruned_weights(self, d_model: int, stack: Stack) -> int:
        """Return the weights, without biases, that the layers of a stack lack with their heads."""
        return 2 * d_model * self._pruned_outputs(d_model, stack)

    def pruned_params(self, d_model: int, stack: Stack) -> int:
        """Return the parameters that the layers of a stack lack with their heads."""
        if self.pruned_heads is None:
            return 0
        weights, outputs = self.pruned_weights(d_model, stack), self._pruned_outputs(d_model, stack)
        # the bias of the output map stays
        biases = 2 * outputs - self.pruned_heads.count(stack) * self.head_counts(d_model).width
        return weights + (biases if self.linear_bias else 0)

    def _pruned_outputs(self, d_model: int, stack: Stack) -> int:
        """Return the pruned features of queries and output, and of keys and values, halved."""
        if self.pruned_heads is None:
            return 0
        counts, pruned = self.head_counts(d_model), self.pruned_heads.count(stack)
        return (pruned + pruned // counts.sharing) * counts.width

    def _attention_size(self, d_model: int) -> tuple[int, int]:
        """Return the weights, and the biases, of the maps of queries, keys, values and output."""
        head = self.head_width(d_model)
        width, kv_width = self.num_heads * head, (self.num_kv_heads or self.num_heads) * head
        return d_model * (2 * width + 2 * kv_width), width + 2 * kv_width + d_model
