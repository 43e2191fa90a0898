"""What clients ask and what they are answered; the OpenAPI schema is made of this."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ds_seq.config.base import Config, PositiveInt
from ds_seq.names import CONSTRAINT_ORDERS, LONG_LINES, ConstraintOrder, LongLines

PerLine = Annotated[
    list[str | None] | str | None,
    Field(description="One value for all lines, or a list with one for each line, null for none."),
]


class ModelRequest(Config):
    """What all questions to a model have."""

    # FastAPI puts fields around requests, which pydantic warns of where their schema is not built
    model_config = ConfigDict(defer_build=False)

    model: str | None = Field(
        default=None, description="Name of the model, see `/models`; null: the first."
    )
    target_lang: str | None = Field(
        default=None,
        description="Language to translate into, for a model of several; null: the lines begin "
        "with their tags themselves.",
    )


class SearchRequest(ModelRequest):
    """How to translate."""

    n_best: PositiveInt = Field(
        default=1, description="Number of translations of each line; at most the beam."
    )
    search: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of the search, such as `beam` or `length_penalty`: those of the "
        "section `generation` of an experiment, except `lm`, `lm_weight`, `shortlist`, `ensemble`, "
        "`max_tokens` and `max_sentences`.",
    )
    target_tag: str | None = Field(
        default=None,
        description="Symbol of the vocabulary with which all translations begin; it is not part "
        "of their text.",
    )
    align: bool = Field(
        default=False, description="Whether to return which source words each word attends to."
    )
    tokens: bool = Field(
        default=False, description="Whether to return the tokens of each translation."
    )
    replace_unk: bool = Field(
        default=False,
        description="Whether unknown pieces are replaced by the source words that they attend to.",
    )


class TranslationRequest(SearchRequest):
    """Lines to translate."""

    text: str | list[str] = Field(
        description="A sentence, or a list of sentences. Of a language model: the prompts."
    )
    prefix: PerLine = Field(default=None, description="What translations begin with.")
    constraints: list[list[str]] = Field(
        default_factory=list,
        description="Phrases that the translation of each line contains: a list for each line.",
    )
    constraint_order: ConstraintOrder = Field(
        default=CONSTRAINT_ORDERS[0],
        description="`given`: the phrases occur in the given order, without overlap.",
    )
    long_lines: LongLines = Field(
        default=LONG_LINES[0],
        description="For lines that are too long for the model: translate the start, return an "
        "empty translation, or refuse the request.",
    )


class TextRequest(SearchRequest):
    """A running text to translate sentence by sentence."""

    text: str = Field(description="Text of any number of sentences and lines.")


class ExplanationRequest(ModelRequest):
    """A pair to look at."""

    text: str = Field(description="The source.")
    target: str | None = Field(
        default=None, description="The translation; null: the best one that the model finds."
    )
    target_ids: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None,
        description="The translation as token ids, as `/translate` returns them with `tokens`.",
    )
    candidates: PositiveInt = Field(
        default=5, le=100, description="Number of the most probable tokens at each place."
    )


class Token(BaseModel):
    """A token of a translation."""

    id: int
    piece: str
    score: float | None = Field(description="Its log-probability.")


class Hypothesis(BaseModel):
    """A translation."""

    text: str
    score: float | None = Field(
        description="Log-probability divided by the length penalty; null: impossible."
    )
    alignment: list[tuple[int, int]] | None = Field(
        default=None, description="Pairs of source and target words, counted from 0."
    )
    tokens: list[Token] | None = Field(default=None, description="Its tokens, the end symbol last.")


class Line(BaseModel):
    """The translations of a line."""

    source: str = Field(description="The line as the model reads it.")
    hypotheses: list[Hypothesis] = Field(description="The best first.")
    cut: bool = Field(description="Whether the line was too long and only its start translated.")
    untagged: bool = Field(
        description="Whether the line has no language tag although the model needs one."
    )


class TranslationAnswer(BaseModel):
    """The translations of all lines, in their order."""

    model: str
    lines: list[Line]


class Candidate(BaseModel):
    """A token that could stand at a place."""

    piece: str
    log_prob: float


class TargetToken(Token):
    """A token of the target, the end symbol included."""

    candidates: list[Candidate] = Field(description="The most probable tokens at this place.")


class Visit(BaseModel):
    """An expert that a token visits."""

    expert: int
    weight: float


class ExpertLayer(BaseModel):
    """The experts of one call of a layer."""

    name: str = Field(description="Such as `encoder 1`, from 0.")
    num_experts: int
    side: str | None = Field(
        description="`source` or `target`, whose tokens it routes; null if that is not known."
    )
    visits: list[list[Visit]] = Field(description="Experts of each token.")


class Attention(BaseModel):
    """Attention of all layers and heads: `[layer][head][query][key]`, rounded."""

    encoder: list[list[list[list[float]]]]
    decoder: list[list[list[list[float]]]]
    cross: list[list[list[list[float]]]]


class Explanation(BaseModel):
    """What a model does with a pair."""

    model: str
    source: list[str] = Field(description="Pieces of the source, the end symbol last.")
    target: list[TargetToken]
    text: str = Field(description="The translation.")
    log_prob: float = Field(description="Sum of the scores of the tokens.")
    attention: Attention
    experts: list[ExpertLayer]


class ModelAnswer(BaseModel):
    """A model of this server."""

    name: str
    task: str
    source_lang: str
    target_lang: str
    target_langs: list[str] = Field(description="Codes for `target_lang`; empty: there is one.")
    longest_source: int = Field(description="Most tokens of a line.")
    experts: bool = Field(description="Whether it has layers with experts.")
    checkpoints: list[str] = Field(description="Files of its weights; several form an ensemble.")
    generation: dict[str, Any] = Field(description="Options of the search if none are given.")
