"""The noise of `task: denoising`: that of BART, of mBART or of T5."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ds_seq.config.base import SHORT_FORM, FieldErrors, NamedConfig, PositiveInt, plugin_tag

Share = Annotated[float, Field(ge=0.0, le=1.0)]
_SpanMean = Annotated[float, Field(ge=1.0, le=100.0)]
SENTENCE_ENDS = [".", "!", "?"]


class BartConfig(NamedConfig):
    """The five noises of BART, with its settings; the target is the whole text."""

    name: Literal["bart"] = Field(default="bart", description="Selects this noise.")
    permute_sentences: Share = Field(
        default=1.0,
        description="Share of the sentences of a text that change places with each other.",
    )
    mask: Share = Field(
        default=0.0, description="Share of the words of which each token becomes `<mask>`."
    )
    delete: Share = Field(default=0.0, description="Share of the words that are deleted.")
    infill: Share = Field(
        default=0.3,
        description="Share of the words that are in spans, each of which becomes one `<mask>`.",
    )
    span_mean: _SpanMean = Field(
        default=3.0,
        description="Mean number of words of a span; its distribution is that of Poisson, so that "
        "some spans are empty and insert a `<mask>`.",
    )
    random: Share = Field(
        default=0.0, description="Share of the masks in whose place a random token stands."
    )
    rotate: Share = Field(
        default=0.0,
        description="Share of the texts that begin with a random one of their tokens, followed by "
        "the rest and by what was before it.",
    )
    whole_words: bool = Field(
        default=True,
        description="Whether words are masked and deleted as wholes; false takes each token for a "
        "word.",
    )
    sentence_ends: list[Annotated[str, Field(min_length=1)]] = Field(
        default=SENTENCE_ENDS,
        description="Subwords that end sentences, in addition to the end symbol.",
    )

    @model_validator(mode="after")
    def _check_noise(self) -> BartConfig:
        shares = (self.permute_sentences, self.mask, self.delete, self.infill, self.rotate)
        if not any(shares):
            message = "all noises are 0, so that the model would learn to copy; raise one"
            raise FieldErrors([("infill", message)])
        return self


class MbartConfig(BartConfig):
    """The noise of mBART: as BART's, but with more and longer spans."""

    name: Literal["mbart"] = Field(  # type: ignore[assignment]
        default="mbart", description="Selects this noise."
    )
    infill: Share = Field(default=0.35, description="As in bart.")
    span_mean: _SpanMean = Field(default=3.5, description="As in bart.")


class T5Config(NamedConfig):
    """Span corruption of T5: the target has the hidden spans only."""

    name: Literal["t5"] = Field(default="t5", description="Selects this noise.")
    density: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.15, description="Share of the tokens that are in spans."
    )
    span_mean: _SpanMean = Field(default=3.0, description="Mean number of tokens of a span.")
    sentinels: PositiveInt | None = Field(
        default=None,
        description="Number of symbols for spans that are used, which bounds the number of spans "
        "of a text; null: all that the vocabulary has.",
    )


NoiseConfig = Annotated[
    Annotated[BartConfig, Tag("bart")]
    | Annotated[MbartConfig, Tag("mbart")]
    | Annotated[T5Config, Tag("t5")],
    Discriminator(plugin_tag("bart")),
    SHORT_FORM,
]
