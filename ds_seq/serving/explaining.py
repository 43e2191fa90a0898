"""Explanations: what a served model does with one pair, as pieces, scores, maps and experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ds_seq.errors import UserError
from ds_seq.generation.explain import LayerVisits, PairExplanation, describe_pair
from ds_seq.generation.forced import ForcedPair
from ds_seq.generation.rescoring import Row, encode_rows
from ds_seq.reports.moe_watch import layer_names
from ds_seq.serving.models import Item, Question, Search, ServedModel
from ds_seq.serving.requests import (
    Attention,
    Candidate,
    ExpertLayer,
    Explanation,
    ExplanationRequest,
    TargetToken,
    TranslationRequest,
    Visit,
)

_MOST_WEIGHTS = 2_000_000
"""Most attention weights of an answer, about 12 MB of JSON."""
_DIGITS = 3
Heads = list[list[list[float]]]


class PairItem(NamedTuple):
    """A pair to explain."""

    source: list[int]
    """Source ids, framed."""
    target: list[int] | None
    """Target ids without the end symbol; None: those of the best translation."""


@dataclass(frozen=True)
class Explain:
    """The kind of an explanation, for `ds_seq.serving.batcher.Batcher`.

    Attributes:
        model: the model; of an ensemble, the first is explained.
        num_candidates: most candidates at each place of the target.
        most_items: explanations share no batch.
        most_size: see `most_items`.
    """

    model: ServedModel
    num_candidates: int
    most_items: int = 1
    most_size: int = 1

    def __call__(self, items: Sequence[PairItem]) -> list[Explanation]:
        """Explain the pairs."""
        return [self._explain(item) for item in items]

    def _explain(self, item: PairItem) -> Explanation:
        served, run = self.model, self.model.runs[0]
        target = self._best(item.source) if item.target is None else item.target
        found = describe_pair(
            run.seq2seq,
            served.recorder,
            served.card.tokenizers,
            ForcedPair(item.source, target),
            served.device,
            self.num_candidates,
            layer_names(run.model),
        )
        return Explanation(
            model=served.name,
            source=found.source,
            target=_tokens(found),
            text=found.text,
            log_prob=sum(found.log_probs),
            attention=_attention(found),
            experts=[_layer(layer) for layer in found.experts],
        )

    def _best(self, source: list[int]) -> list[int]:
        """Return the ids of the best translation."""
        kind = Search(self.model, self.model.settings, 1, False, False, False, None)
        return kind.search([Item(0, "", source, None, None, False, False)])[0].hypotheses[0].tokens


def _tokens(found: PairExplanation) -> list[TargetToken]:
    rows = zip(found.target_ids, found.target, found.log_probs, found.candidates, strict=True)
    return [
        TargetToken(
            id=token,
            piece=piece,
            score=score,
            candidates=[Candidate(piece=each.piece, log_prob=each.log_prob) for each in candidates],
        )
        for token, piece, score, candidates in rows
    ]


def _layer(layer: LayerVisits) -> ExpertLayer:
    return ExpertLayer(
        name=layer.name,
        num_experts=layer.num_experts,
        side=layer.side,
        visits=[
            [Visit(expert=each.expert, weight=round(each.weight, _DIGITS)) for each in row]
            for row in layer.visits
        ],
    )


def explanation_question(model: ServedModel, request: ExplanationRequest) -> Question:
    """Return what to ask the batcher for an explanation.

    Raises:
        UserError: the request is invalid, or the model is a language model.
    """
    card = model.card
    if card.reads_prompts:
        raise UserError(f"model {model.name}: is a language model, which has no source to look at")
    if request.target is not None and request.target_ids is not None:
        raise UserError("target_ids: target gives the translation already; leave out one of them")
    asked = TranslationRequest(text=request.text, target_lang=request.target_lang)
    (line,) = model.ask(asked)
    if not isinstance(line, Question):
        raise UserError("text: is empty; there is nothing to explain")
    source, target = line.item.source, request.target_ids
    tokenizer = card.tokenizers.target
    most = card.max_positions - 1
    if target is not None and (max(target, default=0) >= len(tokenizer) or len(target) > most):
        raise UserError(
            f"target_ids: should be at most {most:,} ids below {len(tokenizer):,}, as /translate "
            "returns them"
        )
    if request.target is not None:
        rows = [Row(0, tokenizer.normalize(request.target), 1)]
        limits = card.max_positions, card.longest_source
        encoded = encode_rows(card.tokenizers, [line.item.text], rows, "target", *limits)
        target = list(encoded.pairs[0].target)
    return Question(Explain(model, request.candidates), PairItem(source, target), len(source))


def _attention(insight: PairExplanation) -> Attention:
    """Return all maps; means over the heads where that many weights are too many.

    Raises:
        UserError: even those are too many.
    """
    kinds = (insight.encoder_attention, insight.decoder_attention, insight.cross_attention)
    total = sum(weights.numel() for maps in kinds for weights in maps)
    if total > _MOST_WEIGHTS:
        means = [tuple(weights.mean(0, keepdim=True) for weights in maps) for maps in kinds]
        total = sum(weights.numel() for maps in means for weights in maps)
        if total > _MOST_WEIGHTS:
            raise UserError("text: too long to look at its attention; shorten it")
        kinds = (means[0], means[1], means[2])
    encoder, decoder, cross = ([_rounded(weights) for weights in maps] for maps in kinds)
    return Attention(encoder=encoder, decoder=decoder, cross=cross)


def _rounded(weights: Tensor) -> Heads:
    rounded: Heads = np.round(weights.double().numpy(), _DIGITS).tolist()
    return rounded
