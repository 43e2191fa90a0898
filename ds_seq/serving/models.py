"""The models of a server: loaded once, asked by requests, searched in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from ds_seq.config.generation import GenerationConfig
from ds_seq.errors import UserError
from ds_seq.generation.alignment import Aligner
from ds_seq.generation.build import BATCH_SIZE, changed_settings, check_n_best
from ds_seq.generation.explain import RoutingRecorder
from ds_seq.generation.output import LineWriter, Spelling, json_number
from ds_seq.generation.pipeline import Translator
from ds_seq.generation.steering import Given, Restrictions, Steering
from ds_seq.generation.translate import LineResult, search_batches
from ds_seq.names import CONSTRAINT_ORDERS, ConstraintOrder, LongLines
from ds_seq.plugins import nearest
from ds_seq.reports.moe_watch import layer_names
from ds_seq.runs.card import LoadedRun, ModelCard
from ds_seq.runs.decoding import run_translator
from ds_seq.runs.tagger import tagger
from ds_seq.search import hypotheses as searched
from ds_seq.serving.requests import (
    Hypothesis,
    Line,
    ModelAnswer,
    SearchRequest,
    Token,
    TranslationRequest,
)
from ds_seq.text.tags import language_of

NOT_OF_REQUESTS = frozenset({"lm", "lm_weight", "shortlist", "ensemble", *BATCH_SIZE})
"""Fields of `GenerationConfig` that are the server's: they load files, or bound batches."""

_TRANSLATORS = 64  # translators that are kept for requests with the same settings


class ServedModel:
    """A model, or an ensemble of models, that a server answers with.

    Args:
        name: its name in requests.
        runs: the models; all have the same vocabulary.
        settings: options of the search if a request gives none, and the size of batches.
        device: device of the models.
        most_beam: largest beam and number of samples that a request may ask for.

    Raises:
        UserError: the models do not fit each other.
    """

    def __init__(
        self,
        name: str,
        runs: Sequence[LoadedRun],
        settings: GenerationConfig,
        device: torch.device,
        most_beam: int,
    ) -> None:
        first = runs[0]
        for run in runs[1:]:
            if run.tokenizers.fingerprint != first.tokenizers.fingerprint:
                raise UserError(
                    f"{name}: {run.source} has another vocabulary than {first.source}; models that "
                    "translate together need the same vocabulary"
                )
        self.name, self.runs, self.settings, self.device = name, runs, settings, device
        self.most_beam = most_beam
        # finds now what does not fit, and loads the language model of the settings only once
        search = run_translator(runs, settings, device).search
        self._fusion = () if settings.lm is None else search.guides[:1]
        self._max_positions = search.max_positions
        self.translator = lru_cache(_TRANSLATORS)(self._translator)
        self.recorder = RoutingRecorder(first.model)

    @property
    def card(self) -> ModelCard:
        """The first model's card, which determines everything except the models themselves."""
        return self.runs[0].card

    def _translator(self, settings: GenerationConfig, num_best: int) -> Translator:
        plain = settings.model_copy(update={"lm": None})
        translator = run_translator(self.runs, plain, self.device, num_best)
        guides = (*self._fusion, *translator.search.guides)
        search = replace(translator.search, guides=guides, max_positions=self._max_positions)
        return replace(translator, search=search)

    @cached_property
    def aligner(self) -> Aligner | None:
        """Aligns translations with their sources; None for a model that cannot."""
        if self.card.reads_prompts:
            return None
        limits = self.translator(self.settings, 1).limits
        models = [run.seq2seq for run in self.runs]
        aligner = Aligner(models, self.card.tokenizers, limits, self.device)
        return aligner if aligner.can_align() else None

    def description(self) -> ModelAnswer:
        """Return what clients see of the model."""
        card = self.card
        tags = dict.fromkeys([*card.tags_by_language, *map(language_of, card.source_tags.values())])
        settings = self.settings.model_dump(mode="json", exclude=set(NOT_OF_REQUESTS))
        return ModelAnswer(
            name=self.name,
            task=card.task,
            source_lang=card.source_lang,
            target_lang=card.target_lang,
            target_langs=list(tags),
            longest_source=self.translator(self.settings, 1).limits.max_source_length - 1,
            experts=bool(layer_names(self.runs[0].model)),
            checkpoints=[str(run.source) for run in self.runs],
            generation=settings,
        )

    def search_settings(self, options: Mapping[str, Any]) -> GenerationConfig:
        """Return the settings of a search with some options of a request.

        Raises:
            UserError: an option is unknown, or its value is invalid or too large.
        """
        allowed = [name for name in GenerationConfig.model_fields if name not in NOT_OF_REQUESTS]
        for name in options:
            if name not in allowed:
                raise UserError(
                    f"search.{name}: no such option{nearest(name, allowed)}; there are "
                    f"{', '.join(allowed)}"
                )
        settings = changed_settings(self.settings, options, lambda name: f"search.{name}")
        if settings.beam > self.most_beam and "beam" in options:
            raise UserError(f"search.beam {settings.beam}: this server allows {self.most_beam}")
        return settings

    def ask(self, request: TranslationRequest) -> list[Line | Question]:
        """Return the questions of a request, and the lines without text, which are no question.

        Raises:
            UserError: the request is invalid.
        """
        lines = [request.text] if isinstance(request.text, str) else request.text
        kind, translator = self._kind(request, lines)
        if request.target_lang is not None:
            tags = tagger(self.card, [request.target_lang], "target_lang")
            translator = replace(translator, tagged=tags)
        if request.target_tag is not None:
            translator = replace(translator, tags=None)  # a tag of the target names the language
        too_long: LongLines = request.long_lines if request.long_lines == "skip" else "truncate"
        reading = replace(translator, long_lines=too_long).read(lines)
        if request.long_lines == "error" and reading.plan.long:
            raise UserError(
                f"text[{min(reading.plan.long)}]: longer than the "
                f"{translator.limits.max_source_length - 1:,} tokens that the model takes; shorten "
                "it, or let long_lines be truncate or skip"
            )
        steering = _steering(request, lines)
        found = steering.restrictions(translator.search, self.card.tokenizers.target)
        tag = found.common[-1] if request.target_tag is not None else None
        order = None if found.phrases is None else found.order
        kind = replace(kind, common=tuple(found.common), tag=tag, order=order)
        asked: list[Line | Question] = []
        for number, text in enumerate(reading.lines):
            cut, untagged = number in reading.plan.long, number in reading.untagged
            if number not in reading.plan.sources:
                empty = Hypothesis(
                    text="",
                    score=0.0,
                    alignment=[] if request.align else None,
                    tokens=[] if request.tokens else None,
                )
                asked.append(Line(source=text, hypotheses=[empty], cut=cut, untagged=untagged))
                continue
            ids = reading.plan.sources[number].tolist()
            prefix = None if found.prefixes is None else list(found.prefixes[number])
            phrases = None if found.phrases is None else list(found.phrases[number])
            item = Item(number, text, ids, prefix, phrases, cut, untagged)
            asked.append(Question(kind.for_item(item), item, len(ids)))
        return asked

    def _kind(self, request: SearchRequest, lines: Sequence[str]) -> tuple[Search, Translator]:
        """Return the kind of the searches of a request, and its translator."""
        settings = self.search_settings(request.search)
        if request.n_best > self.most_beam:
            raise UserError(f"n_best {request.n_best}: this server allows {self.most_beam}")
        if request.n_best > settings.beam and not settings.sampling:
            raise UserError(
                f"n_best {request.n_best}: the search keeps {settings.beam} hypotheses; raise "
                "search.beam"
            )
        check_n_best(request.n_best, settings)
        if (request.align or request.replace_unk) and self.aligner is None:
            name = "align" if request.align else "replace_unk"
            raise UserError(f"{name}: {self.name} has no attention to a source; leave it out")
        kind = Search(
            self,
            settings,
            request.n_best,
            request.align,
            request.tokens,
            request.replace_unk,
            # random numbers belong to the number of a line in its request
            own=object() if settings.sampling else None,
        )
        return kind, self.translator(settings, request.n_best)


class Item(NamedTuple):
    """A line to translate."""

    number: int
    """Its number in the request, from 0."""
    text: str
    """Normalized text."""
    source: list[int]
    """Source ids, framed."""
    prefix: list[int] | None
    phrases: list[Sequence[int]] | None
    cut: bool
    untagged: bool


class Question(NamedTuple):
    """What a request asks the batcher."""

    kind: Any
    """A `ds_seq.serving.batcher.Kind`."""
    item: Any
    size: int


@dataclass(frozen=True)
class Search:
    """A kind of search, for `ds_seq.serving.batcher.Batcher`: equal ones share batches.

    Attributes:
        model: the model.
        settings: options of the search.
        num_best: number of translations of each line.
        align: whether answers have alignments.
        tokens: whether answers have tokens.
        replace_unk: see `LineWriter`.
        own: different for searches that share no batch with others although all else is equal.
        common: tokens with which all translations begin.
        tag: id of the tag that is no part of the text, or None.
        has_prefixes: whether lines have prefixes.
        order: order of the phrases of lines; None: they have none.
    """

    model: ServedModel
    settings: GenerationConfig
    num_best: int
    align: bool
    tokens: bool
    replace_unk: bool
    own: object | None
    common: tuple[int, ...] = ()
    tag: int | None = None
    has_prefixes: bool = False
    order: ConstraintOrder | None = None

    @property
    def most_items(self) -> int:
        """Most sentences of a batch."""
        return self._share(self.settings.max_sentences)

    @property
    def most_size(self) -> int:
        """Most source tokens of a batch, padding included."""
        return self._share(self.settings.max_tokens)

    def _share(self, most: int) -> int:
        """Return a limit as it is, or less where a request asks for a wider search than usual.

        So the memory of a batch is bounded by the settings of the server, not by requests.
        """
        usual = self.model.settings.beam
        width = self.num_best if self.settings.sampling else self.settings.beam
        return max(most * usual // max(width, usual), 1)

    def for_item(self, item: Item) -> Search:
        """Return the kind for a line: those without a restriction are searched without it."""
        return replace(
            self,
            has_prefixes=bool(item.prefix),
            order=self.order if item.phrases else None,
        )

    def __call__(self, items: Sequence[Item]) -> list[Line]:
        """Translate a batch."""
        found = self.search(items)
        rows = zip(items, found, strict=True)
        return [self._answer(item, result) for item, result in rows]

    def search(self, items: Sequence[Item]) -> list[LineResult]:
        """Return the result of each line of a batch."""
        translator = self.model.translator(self.settings, self.num_best)
        numbers = list(range(len(items))) if self.own is None else [item.number for item in items]
        by_number = dict(zip(numbers, items, strict=True))
        search = Restrictions(
            list(self.common),
            {i: item.prefix or [] for i, item in by_number.items()} if self.has_prefixes else None,
            None if self.order is None else [item.phrases or [] for item in items],
            self.order or CONSTRAINT_ORDERS[0],
        ).apply(translator.search)
        found: dict[int, list[searched.Hypothesis]] = {}
        for batch, results in search_batches(
            translator.model,
            search,
            [np.array(numbers, np.int64)],
            lambda number: by_number[number].source,
            self.model.device,
        ):
            found.update(zip(batch.tolist(), results, strict=True))
        lines = [
            LineResult(number, item.source, found[number], item.cut)
            for number, item in by_number.items()
        ]
        if (self.align or self.replace_unk) and self.model.aligner is not None:
            lines = self.model.aligner(lines)
        return lines

    def _answer(self, item: Item, result: LineResult) -> Line:
        tokenizers = self.model.card.tokenizers
        spelling = Spelling(tokenizers.target, self.tag)
        write = LineWriter(
            "text", tokenizers, [item.text], None, result.line, self.align, self.replace_unk,
            spelling,
        )  # fmt: skip
        return Line(
            source=item.text,
            hypotheses=[self._hypothesis(write, result.line, each) for each in result.hypotheses],
            cut=item.cut,
            untagged=item.untagged,
        )

    def _hypothesis(
        self, write: LineWriter, line: int, hypothesis: searched.Hypothesis
    ) -> Hypothesis:
        tokens = None
        if self.tokens:
            target = self.model.card.tokenizers.target
            ids = [*hypothesis.tokens, target.symbols.eos][: len(hypothesis.token_scores)]
            rows = zip(ids, target.pieces(ids), hypothesis.token_scores, strict=True)
            tokens = [Token(id=i, piece=p, score=json_number(score)) for i, p, score in rows]
        return Hypothesis(
            text=write.text(line, hypothesis),
            score=json_number(hypothesis.score),
            alignment=write.words(line, hypothesis) if self.align else None,
            tokens=tokens,
        )


def _steering(request: TranslationRequest, lines: Sequence[str]) -> Steering:
    """Return what constrains the translations of a request.

    Raises:
        UserError: there is not one constraint for each line.
    """
    prefix, constraints = None, None
    if request.prefix is not None:
        given = request.prefix
        texts = [given] * len(lines) if isinstance(given, str) else [text or "" for text in given]
        prefix = Given("prefix", "prefix", texts, False)
    if request.constraints:
        for number, phrases in enumerate(request.constraints):
            if any("\t" in phrase for phrase in phrases):
                raise UserError(f"constraints[{number}]: a phrase contains a tab; remove it")
        rows = ["\t".join(phrases) for phrases in request.constraints]
        constraints = Given("constraints", "constraints", rows, False)
    for values in (prefix, constraints):
        if values is not None and len(values.lines) != len(lines):
            raise UserError(
                f"{values.name}: has {len(values.lines):,} entries but there are {len(lines):,} "
                "lines of text; give one for each line"
            )
    return Steering(
        prefix, request.target_tag, "target_tag", constraints, request.constraint_order, None
    )
