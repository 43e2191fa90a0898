"""The encoder-decoder Transformer: all axes together, and its number of parameters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ds_seq.config.base import FieldErrors
from ds_seq.config.model.adapters import AdapterFields
from ds_seq.config.model.embedding import EmbeddingFields
from ds_seq.config.model.encoder_input import EncoderInputConfig
from ds_seq.config.model.ffn import FfnFields
from ds_seq.config.model.linear import LinearFields
from ds_seq.config.model.lora import LoraFields
from ds_seq.config.model.mixer import MixerFields
from ds_seq.config.model.moe import MoeFields
from ds_seq.config.model.multiway import MultiwayFields
from ds_seq.config.model.norm import NormFields
from ds_seq.config.model.positions import ADDED_POSITIONS, PositionFields
from ds_seq.config.model.presets import PresetFields
from ds_seq.config.model.residual import ResidualFields
from ds_seq.config.model.section import ModelSize
from ds_seq.config.model.stack import StackFields
from ds_seq.names import BIASED_POSITIONS, AttentionKind, LoraModule, Stack

_LARGE = 10**9  # a vocabulary that has all bands of adaptive embeddings


# Fields are listed in the order of the bases, from the last to the first.
class TransformerFields(
    LoraFields,
    AdapterFields,
    MoeFields,
    MultiwayFields,
    EmbeddingFields,
    PositionFields,
    NormFields,
    ResidualFields,
    FfnFields,
    MixerFields,
    LinearFields,
    StackFields,
    PresetFields,
):
    """Fields of a model that is composed of the axes; external models may use them, too."""

    @model_validator(mode="after")
    def _check_fields(self) -> TransformerFields:
        errors = self.field_errors()
        if errors:
            raise FieldErrors(errors)
        return self

    def field_errors(self) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        return self.moe_errors()

    @property
    def state_width(self) -> int:
        """Width of the states of the layers."""
        return self.d_model

    @property
    def attention_maps(self) -> tuple[AttentionKind, ...]:
        """The kinds of attention that layers have: other mixers have no maps."""
        own = [stack for stack in self.stacks if self.has_self_attention(stack)]
        return (*own, "cross")


class TransformerConfig(TransformerFields):
    """An encoder-decoder Transformer."""

    name: Literal["transformer"] = Field(default="transformer", description="Selects this model.")
    encoder_input: EncoderInputConfig | None = Field(
        default=None,
        description="A trained language model that reads the source, and whose states are the "
        "input of the encoder; null: embeddings of the tokens.",
    )

    @property
    def language_model(self) -> EncoderInputConfig | None:
        """See `ModelSection`."""
        return self.encoder_input

    @property
    def shares_inputs(self) -> bool:
        """See `EmbeddingFields`; a language model replaces the table of the source."""
        return self.language_model is not None or super().shares_inputs

    @property
    def has_dense_head(self) -> bool:
        """Whether a map, an activation and a norm precede the projection to the vocabulary."""
        return False

    def head_params(self) -> int:
        """Return the number of parameters of what precedes the projection to the vocabulary."""
        width = self.d_model
        return width * width + width + self.norm.num_params(width) if self.has_dense_head else 0

    def field_errors(self) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        errors = [
            *(self.mixer_errors(self.d_model) or self._head_errors()),
            *self.self_mixer_errors(self.d_model, self._depths()),
            *self.ffn_errors(),
            *self.embedding_errors(self.d_model),
            *self.residual_errors(),
            *self._position_errors(),
            *self.moe_errors(),
            *self.multiway_errors(self.lora is not None),
            *self.adapter_errors(),
            *self._low_rank_errors(),
            *self._input_errors(),
        ]
        return errors or self._idle_low_rank()

    def _input_errors(self) -> list[tuple[str, str]]:
        read = self.language_model
        return [] if read is None else read.errors(self.max_positions)

    def _low_rank_errors(self) -> list[tuple[str, str]]:
        if self.lora is not None and self.pruned_heads is not None:
            return [("lora", "cannot change attentions without some heads (pruned_heads)")]
        return self.lora_errors(self.linear.packed_bits is None, self.moe is not None)

    def _idle_low_rank(self) -> list[tuple[str, str]]:
        """Return that low-rank changes would change nothing; to be asked if all else is right."""
        if self.lora is None:
            return []
        without = self.model_copy(update={"lora": None})
        if without.num_params(_LARGE).total < self.num_params(_LARGE).total:
            return []
        message = f"{', '.join(self.lora.modules)}: the model has no such map, so that nothing is "
        return [("lora.modules", message + "changed; name others, such as value and output")]

    def _position_errors(self) -> list[tuple[str, str]]:
        name = self.positions.name
        dilated = [stack for stack in self.stacks if self.dilated_of(stack)]
        if dilated and name in BIASED_POSITIONS:
            message = f"{name} is a bias of all pairs of tokens, which dilated attention "
            message += f"({dilated[0]}_mixer) does not compute; use rotary, xpos, sinusoidal, "
            return [("positions", message + "learned or none")]
        if any(map(self.has_self_attention, self.stacks)):
            return self.positions.errors(self.d_model, self.head_width(self.d_model))
        if not any(map(self.convolution_of, self.stacks)):
            message = "no stack has self-attention, and retention has its own; set it to none"
            return [] if name == "none" else [("positions", message)]
        if name not in ADDED_POSITIONS:
            message = f"{name} is part of self-attention, of which there is none; use one of "
            return [("positions", message + ", ".join(ADDED_POSITIONS))]
        return self.positions.errors(self.d_model, self.head_width(self.d_model))

    def _depths(self) -> dict[Stack, int]:
        return {stack: self.layers_of(stack) for stack in self.stacks}

    def _head_errors(self) -> list[tuple[str, str]]:
        if self.pruned_heads is None:
            return []
        if self.has_inner_norms:
            message = "cannot go with norm_position subln, whose norm covers all heads"
            return [("pruned_heads", message)]
        found = self.pruned_heads.errors(self.head_counts(self.d_model), self._depths())
        return [(f"pruned_heads.{field}", message) for field, message in found]

    def num_params(self, vocab_size: int, source_vocab_size: int | None = None) -> ModelSize:
        """Count the parameters without building the model, except those of an external router.

        Args:
            vocab_size: size of the vocabulary of the target.
            source_vocab_size: size of that of the source; None: the same.
        """
        source_size = source_vocab_size or vocab_size
        ends = self.embedding_params(self.d_model, vocab_size, source_size) + self.head_params()
        size = ModelSize.dense(ends)
        for stack in self.stacks:
            size += self._stack_size(stack)
        if self.language_model is not None:
            size += ModelSize.dense(sum(self.language_model.num_params(self.d_model, source_size)))
        return size

    def linear_weights(self) -> int:
        """Return the weights of the maps of all layers that `linear` is about, without biases."""
        total = 0
        for stack in self.stacks:
            sets = self.sets_of(stack)
            depth = self.layers_of(stack)
            mixers = depth * self.mixer_weights(self.d_model, stack)
            mixers += self.kernel_maps(self.d_model, stack, depth)
            total += sets * (mixers - self.pruned_weights(self.d_model, stack))
            for num_experts in self.expert_counts(stack):
                if self.moe is None or num_experts == 0:
                    total += sets * self.ffn_weights(self.d_model, self.ffn_dim)
                    continue
                width = self.moe.ffn_dim or self.ffn_dim
                total += num_experts * self.ffn_weights(self.d_model, width)
                if branch := self.moe.dense_width(width):
                    total += self.ffn_weights(self.d_model, branch)
        return total

    def _stack_size(self, stack: Stack) -> ModelSize:
        depth, mixers = self.layers_of(stack), self.mixers_of(stack)
        norm = self.norm.num_params(self.d_model)
        norms = self.residual_params(depth * (mixers + 1), norm)
        if self.embedding_norm:
            norms += norm
        if self.has_inner_norms:  # of the mixer; those of feed-forwards are counted with them
            norms += depth * self._inner_mixer_norm(stack)
        mixed = depth * self._mixers(stack) + self.kernel_params(self.d_model, stack, depth)
        size = ModelSize.dense(mixed - self.pruned_params(self.d_model, stack) + norms)
        counts = self.expert_counts(stack)
        for _ in range(counts.count(0)):
            size += self._ffn_size(0, stack)
        further = self.sets_of(stack) - 1  # of which a token uses none
        size += ModelSize(further * size.total, 0)
        for num_experts in filter(None, counts):
            size += self._ffn_size(num_experts, stack)
        positions = 0
        if self.has_positions(stack):
            positions = self.positions.num_params(self.d_model, self.max_positions, self.num_heads)
        adapters = (self.adapter_params(stack, norm), self.active_adapter_params(stack, norm))
        size += ModelSize(*(depth * count for count in adapters))
        return size + ModelSize.dense(positions)

    def has_positions(self, stack: Stack) -> bool:
        """Return whether a stack needs the positions of the model, added or in its attention."""
        if self.has_self_attention(stack):
            return True
        return self.convolution_of(stack) is not None and self.positions.name in ADDED_POSITIONS

    def _inner_mixer_norm(self, stack: Stack) -> int:
        """Return the parameters of the norm before the last map of a mixer; retention has none."""
        convolution = self.convolution_of(stack)
        if convolution is not None:
            return self.norm.num_params(convolution.channels(self.d_model))
        if self.has_self_attention(stack):
            return self.norm.num_params(self.num_heads * self.head_width(self.d_model))
        return 0

    def _mixers(self, stack: Stack) -> int:
        """Return the parameters of the attentions of one layer, with their changes."""
        attentions = self.mixer_params(self.d_model, stack, self.norm.num_params)
        return attentions + self.attention_changes(stack)

    def attention_changes(self, stack: Stack) -> int:
        """Return the parameters of the low-rank changes of the mixers of one layer."""
        head = self.head_width(self.d_model)
        own, shared = self.num_heads * head, (self.num_kv_heads or self.num_heads) * head
        widths: dict[LoraModule, int] = {"query": own, "key": shared, "value": shared}
        attention = self.mixer_lora_params(stack, {**widths, "output": own})
        changes, retention = self.attentions_of(stack) * attention, self.retention_of(stack)
        if retention is not None:
            values = retention.values(self.d_model)
            widths = {"query": self.d_model, "key": self.d_model, "value": values, "output": values}
            changes += self.mixer_lora_params(stack, widths)
        convolution = self.convolution_of(stack)
        if convolution is not None:
            channels = convolution.channels(self.d_model)
            changes += self.mixer_lora_params(stack, {"value": channels, "output": channels})
        return changes

    def _ffn_size(self, num_experts: int, stack: Stack) -> ModelSize:
        """Return the size of a dense feed-forward, or of experts with router and dense branch."""
        if self.moe is None or num_experts == 0:
            return ModelSize.dense(self._one_ffn(self.ffn_dim, stack))
        width = self.moe.ffn_dim or self.ffn_dim
        expert = self._one_ffn(width, stack, is_expert=True)
        experts = ModelSize(
            num_experts * expert, self.moe.top_k * expert, experts=num_experts * expert
        )
        dense_width = self.moe.dense_width(width)
        branch = self._one_ffn(dense_width, stack) if dense_width else 0
        shared = branch + self.moe.num_params(self.d_model, num_experts)
        return experts + ModelSize.dense(shared)

    def _one_ffn(self, width: int, stack: Stack, is_expert: bool = False) -> int:
        inner = self.inner_width(width)
        norm = self.norm.num_params(inner) if self.has_inner_norms else 0
        changes = self.ffn_lora_params(stack, inner, 2 if self.is_gated else 1, is_expert)
        return self.ffn_params(self.d_model, width) + norm + changes
