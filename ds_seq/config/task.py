"""The `task` section: what the model learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ds_seq.config.base import (
    Config,
    ExternalConfig,
    FieldErrors,
    NonNegativeInt,
    Probability,
    all_defaults,
    plugin_tag,
)
from ds_seq.config.noise import NoiseConfig
from ds_seq.names import SideChoice, TextUnit


class TranslationConfig(Config):
    """Text to text: translation between two languages, or summarization within one."""

    name: Literal["translation"] = Field(default="translation", description="Selects this task.")
    rouge_stemmer: bool = Field(
        default=True,
        description="Whether ROUGE compares English words without their endings, as in published "
        "scores.",
    )
    samples: NonNegativeInt = Field(
        default=5,
        description="Number of sentences, evenly spaced in the validation text, whose translations "
        "each validation keeps in `metrics.jsonl`; `ds-seq runs --serve` compares them over time.",
    )


class BlockFields(Config):
    """How text of one side is cut into examples."""

    blocks: TextUnit = Field(
        default="tokens",
        description="What an example is: `tokens`, consecutive ones of the whole text, whose lines "
        "and documents are joined; a `document`, the lines up to an empty one; or a `line`. Longer "
        "ones are cut.",
    )
    block_tokens: Annotated[int, Field(ge=2, le=10_000_000)] = Field(
        default=512, description="Number of tokens of the longest example."
    )
    random_start: bool = Field(
        default=True,
        description="Whether blocks of tokens begin elsewhere in each epoch, so that a token has "
        "other context each time; validation always begins at the first token.",
    )


class LanguageModelingConfig(BlockFields):
    """Prediction of each token of a text from those before it."""

    name: Literal["language_modeling"] = Field(description="Selects this task.")
    context_window: NonNegativeInt = Field(
        default=0,
        description="Number of tokens of `block_tokens` that are read again, not scored, in front "
        "of each block when a perplexity is measured, so that each token has at least this "
        "context if there is as much text before it.",
    )

    @model_validator(mode="after")
    def _check_context(self) -> LanguageModelingConfig:
        if self.context_window >= self.block_tokens:
            message = f"{self.context_window} leaves no token of block_tokens {self.block_tokens} "
            raise FieldErrors([("context_window", message + "to score; lower it")])
        return self


class NoisyTextFields(BlockFields):
    """Where the text comes from that a model learns from with noise."""

    side: SideChoice | None = Field(
        default=None,
        description="Side of pairs whose sentences are read instead of blocks of text of one side "
        "(`data.language`): `source`, `target`, or `both`, one by one; "
        "`data.max_source_length` and `data.max_target_length` leave out longer ones.",
    )


class DenoisingConfig(NoisyTextFields):
    """Pre-training of an encoder-decoder, which restores noisy text."""

    name: Literal["denoising"] = Field(description="Selects this task.")
    noise: NoiseConfig = Field(
        default_factory=all_defaults,
        description="The noise: `bart`, `mbart` or `t5`, with the settings of their papers, or one "
        "of these names with other settings.",
    )


class MaskedLanguageModelingConfig(NoisyTextFields):
    """Pre-training of an encoder, which predicts hidden tokens."""

    name: Literal["masked_language_modeling"] = Field(description="Selects this task.")
    predicted: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.15, description="Share of the words that are predicted; at least one of a text."
    )
    random_tokens: Probability = Field(
        default=0.1, description="Share of the predicted tokens that become a random token."
    )
    kept_tokens: Probability = Field(
        default=0.1,
        description="Share of the predicted tokens that stay; all others become `<mask>`.",
    )
    whole_words: bool = Field(
        default=False,
        description="Whether words are predicted as wholes; false takes each token for a word.",
    )

    @model_validator(mode="after")
    def _check_shares(self) -> MaskedLanguageModelingConfig:
        if self.random_tokens + self.kept_tokens > 1.0:
            message = f"{self.kept_tokens:g} and random_tokens {self.random_tokens:g} are more "
            raise FieldErrors([("kept_tokens", message + "than 1; lower one")])
        return self


TaskConfig = Annotated[
    Annotated[TranslationConfig, Tag("translation")]
    | Annotated[LanguageModelingConfig, Tag("language_modeling")]
    | Annotated[DenoisingConfig, Tag("denoising")]
    | Annotated[MaskedLanguageModelingConfig, Tag("masked_language_modeling")]
    | Annotated[ExternalConfig, Tag("external")],
    Discriminator(plugin_tag("translation")),
]
