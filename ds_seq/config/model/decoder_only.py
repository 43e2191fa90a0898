"""The decoder-only Transformer, a language model: the decoder's axes without cross-attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ds_seq.config.model.adaptive import AdaptiveConfig
from ds_seq.config.model.characters import CharacterConfig
from ds_seq.config.model.lm_presets import LM_PRESETS
from ds_seq.config.model.mixer import AttentionMixerConfig
from ds_seq.config.model.section import known_preset, with_preset
from ds_seq.config.model.transformer import TransformerConfig
from ds_seq.names import Stack


class OneStackConfig(TransformerConfig):
    """A Transformer with one stack and one table of embeddings; a part of `TransformerConfig`."""

    # What needs two stacks is no field here.
    multiway: ClassVar[None] = None  # type: ignore[misc]
    pruned_heads: ClassVar[None] = None  # type: ignore[misc]
    encoder_input: ClassVar[None] = None  # type: ignore[misc]

    def mixers_of(self, stack: Stack) -> int:
        """See `MixerFields`: there is no other stack to attend to."""
        return 1

    @property
    def shares_inputs(self) -> bool:
        """See `EmbeddingFields`: there is one input."""
        return True

    def field_errors(self) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        return [*super().field_errors(), *self._errors_of_one_stack()]

    def _errors_of_one_stack(self) -> Iterator[tuple[str, str]]:
        missing = "decoder" if self.stacks == ("encoder",) else "encoder"
        placed = (
            ("moe.placement", None if self.moe is None else self.moe.placement),
            ("lora.stacks", None if self.lora is None else self.lora.stacks),
            ("adapters.stacks", None if self.adapters is None else self.adapters.stacks),
        )
        for key, placement in placed:
            if placement == missing:
                yield key, f"{missing}, which a model {self.name} does not have"
        if self.share_embeddings == "inputs":
            message = f"inputs: a model {self.name} has one input; use all (tied to the output) or "
            yield "share_embeddings", f"{message}none"
        if self.deepnorm_init != "paper":
            message = f"{self.deepnorm_init} is about the encoder of an encoder-decoder; leave it "
            yield "deepnorm_init", f"{message}out"
        if self.moe is not None and self.moe.router == "language":
            yield "moe.router", f"language: a model {self.name} has no source with a tag"
        if self.adapters is not None and self.adapters.tags:
            yield "adapters.tags", f"a model {self.name} has no source with a tag; use active"


class DecoderOnlyConfig(OneStackConfig):
    """A decoder without encoder, for `task: language_modeling`."""

    stacks: ClassVar[tuple[Stack, ...]] = ("decoder",)
    encoder_layers: ClassVar[int] = 0  # type: ignore[misc]
    encoder_repeats: ClassVar[int] = 0  # type: ignore[misc]
    encoder_mixer: ClassVar[Any] = AttentionMixerConfig.model_construct()  # type: ignore[misc]

    name: Literal["decoder_only"] = Field(  # type: ignore[assignment]
        description="Selects this model."
    )
    adaptive: AdaptiveConfig | None = Field(
        default=None,
        description="Adaptive input and softmax: narrower embeddings of rarer tokens.",
    )
    character_embeddings: CharacterConfig | None = Field(
        default=None,
        description="Embeds tokens by a convolutional network over the bytes of their pieces; "
        "null: by a table.",
    )
    final_norm: bool = Field(
        default=True,
        description="With `norm_position` `pre` or `subln`, whether a norm follows the last layer.",
    )
    preset: str | None = Field(
        default=None,
        description="Named sizes for fields that are not given: "
        + ", ".join(f"`{name}`" for name in LM_PRESETS)
        + ".",
    )

    @property
    def adaptive_bands(self) -> AdaptiveConfig | None:
        """See `ModelSection`."""
        return self.adaptive

    @property
    def characters(self) -> CharacterConfig | None:
        """See `ModelSection`."""
        return self.character_embeddings

    @property
    def has_final_norm(self) -> bool:
        """See `ResidualFields`."""
        return super().has_final_norm and self.final_norm

    def residual_errors(self) -> list[tuple[str, str]]:
        """See `ResidualFields`."""
        if self.final_norm or self.normalizes_first:
            return super().residual_errors()
        message = f"false applies to norm_position pre and subln, not to {self.norm_position}"
        return [*super().residual_errors(), ("final_norm", f"{message}; leave it out")]

    def embedding_params(self, d_model: int, vocab_size: int, source_vocab_size: int) -> int:
        """See `EmbeddingFields`."""
        if self.adaptive is None and self.characters is None:
            return super().embedding_params(d_model, vocab_size, source_vocab_size)
        if self.adaptive is None:
            table = vocab_size * (d_model + (1 if self.output_bias else 0))
            return table + (0 if self.characters is None else self.characters.num_params(d_model))
        given = self.adaptive.input_params(d_model, vocab_size)
        if self.characters is not None:
            given = self.characters.num_params(d_model)
        return given + self.adaptive.output_params(d_model, vocab_size, self.shares_output)

    def embedding_errors(self, d_model: int) -> list[tuple[str, str]]:
        """See `EmbeddingFields`."""
        if self.characters is not None:
            errors = self._character_errors(self.characters)
            if errors:
                return errors
        if self.adaptive is None:
            return super().embedding_errors(d_model)
        errors = list(self.adaptive.errors(d_model, self.share_embeddings))
        if self.embedding_dim is not None:
            message = "cannot go with adaptive, whose bands have widths of their own; use null"
            errors.append(("embedding_dim", message))
        if self.output_bias:
            message = "cannot go with adaptive, whose scores have no biases; use false"
            errors.append(("output_bias", message))
        return errors

    def _character_errors(self, characters: CharacterConfig) -> list[tuple[str, str]]:
        """Return what tokens without a table cannot have as (field, message) pairs."""
        errors = characters.errors()
        if self.share_embeddings != "none":
            message = f"{self.share_embeddings}, but with character_embeddings the input has no "
            errors.append(("share_embeddings", f"{message}table; use none"))
        if self.embedding_dim is not None:
            message = "factorizes a table, and character_embeddings have none; use null"
            errors.append(("embedding_dim", message))
        if self.adaptive is not None and self.adaptive.input:
            message = "true, but character_embeddings are the input; use false"
            errors.append(("adaptive.input", message))
        return errors

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, section: Any) -> Any:
        return with_preset(section, LM_PRESETS)

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, preset: str | None) -> str | None:
        return known_preset(preset, LM_PRESETS, "of language models")
