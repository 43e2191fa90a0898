"""Forced decoding: scores and attention of given translations, in one pass without a search.

Shapes: B sentences, H heads, S source length, T target length including the end symbol, N real
target tokens of a batch, n rows of a block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ds_seq.data.batch import Batch, Seq2SeqInputs, seq2seq_batch
from ds_seq.data.shards import TokenBlock
from ds_seq.data.text_batch import text_batch
from ds_seq.errors import UserError
from ds_seq.models.output import ModelOutput
from ds_seq.names import Capture
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.search.penalties import LengthPenalty
from ds_seq.text.tokenizer import Symbols

_ROWS = 256
"""Number of rows normalized at a time, so that no second tensor as large as the logits exists."""


class Scorable(Protocol):
    """The part of a model that forced decoding needs; see `ds_seq.models.protocol`."""

    def __call__(
        self,
        inputs: Seq2SeqInputs,
        capture: Capture = "none",
    ) -> ModelOutput:
        """Score target tokens given source tokens."""


class ForcedPair(NamedTuple):
    """A source sentence and a given translation of it, as token ids."""

    source: Sequence[int]
    """Source ids with the end symbol."""
    target: Sequence[int]
    """Target ids without the end symbol."""


@torch.no_grad()
def score_pairs(
    model: Scorable, search: BeamSearch, pairs: Sequence[ForcedPair], device: torch.device
) -> list[Hypothesis]:
    """Score translations as a search that found them would.

    Length penalty, temperature and the penalty of the unknown symbol apply as in `search`. Its
    length limits and ruled-out tokens do not: every given translation has a score.

    Args:
        model: the model, in evaluation mode.
        search: the search whose scoring is applied.
        pairs: the pairs of one batch.
        device: device of the model.

    Returns:
        A hypothesis for each pair.
    """
    if not pairs:
        return []
    batch = collate_pairs(pairs, search.symbols, device)
    # padding is neither routed, where there are experts, nor projected to the vocabulary
    return _scored(model(batch.inputs).logits, batch.real_labels, search, pairs)


@torch.no_grad()
def score_texts(
    model: Callable[..., ModelOutput],
    search: BeamSearch,
    pairs: Sequence[ForcedPair],
    device: torch.device,
) -> list[Hypothesis]:
    """Score texts, the targets of `pairs`, with a language model; see `score_pairs`."""
    if not pairs:
        return []
    block = TokenBlock.of([[*pair.target, search.symbols.eos] for pair in pairs])
    batch = text_batch(block, search.symbols).to(device)
    return _scored(model(batch.inputs).logits, batch.real_labels, search, pairs)


def _scored(
    logits: Tensor, labels: Tensor, search: BeamSearch, pairs: Sequence[ForcedPair]
) -> list[Hypothesis]:
    """Return a hypothesis for each pair, given logits (N, V) and labels (N,)."""
    scores = torch.cat(
        [
            _log_probs(part, rows, search)
            for part, rows in zip(logits.split(_ROWS), labels.split(_ROWS), strict=True)
        ]
    )
    penalty = LengthPenalty(search.length_penalty, search.length_penalty_form)
    hypotheses = []
    lengths = [len(pair.target) + 1 for pair in pairs]  # with the end symbol
    for pair, row in zip(pairs, scores.split(lengths), strict=True):
        score = float(row.double().sum()) / penalty.divisor(len(row))
        hypotheses.append(Hypothesis(list(pair.target), score, row.tolist()))
    return hypotheses


def _log_probs(logits: Tensor, targets: Tensor, search: BeamSearch) -> Tensor:
    """Return the log-probabilities (n,) of targets (n,), given logits (n, V)."""
    if search.temperature != 1.0:
        logits = logits.float() / search.temperature
    log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    scores = log_probs.gather(1, targets[:, None]).squeeze(1)
    return scores - search.unk_penalty * targets.eq(search.symbols.unk)


@torch.no_grad()
def attention_maps(
    model: Scorable,
    symbols: Symbols,
    pairs: Sequence[ForcedPair],
    device: torch.device,
    layer: int | None = None,
) -> list[Tensor]:
    """Return the cross-attention of each token of each translation.

    Args:
        model: the model, in evaluation mode.
        symbols: special symbols of the target; `Symbols.pad` also pads the source.
        pairs: the pairs of one batch, at least one.
        device: device of the model.
        layer: index of the decoder layer call, from 0; None for the last.

    Returns:
        For each pair the mean over heads of the cross-attention, (T - 1, S) float32, without the
        row that predicts the end symbol.

    Raises:
        UserError: the model has no attention to the source.
        IndexError: there is no such layer.
    """
    batch = collate_pairs(pairs, symbols, device)
    output = model(batch.inputs, "attention")
    assert output.layers is not None
    if not output.layers.cross_attention:
        raise UserError(
            "the model has no attention to the source, so words cannot be aligned; leave out "
            "--align and --replace-unk"
        )
    maps = output.layers.cross_attention[-1 if layer is None else layer].mean(1)  # (B, T, S)
    return [
        weights[: len(pair.target), : len(pair.source)]
        for pair, weights in zip(pairs, maps.cpu(), strict=True)
    ]


def collate_pairs(
    pairs: Sequence[ForcedPair], symbols: Symbols, device: torch.device
) -> Batch[Seq2SeqInputs]:
    """Return the batch of some pairs, whose labels are the targets with their end symbols."""
    source = TokenBlock.of([pair.source for pair in pairs])
    target = TokenBlock.of([[*pair.target, symbols.eos] for pair in pairs])
    return seq2seq_batch(source, target, symbols).to(device)
