"""What a model does with one pair: scores, other candidates, attention, and experts by token.

All of it comes from one forced pass (`ds_seq.generation.forced`), so it costs no search.

Shapes: S source length, T target length including the end symbol, H heads, V vocabulary, K experts
of a token, n tokens of a layer with experts (S or T).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ds_seq.generation.forced import ForcedPair, collate_pairs
from ds_seq.generation.output import plain_text
from ds_seq.models.output import ModelOutput
from ds_seq.moe.calls import moe_calls
from ds_seq.moe.router import Routing
from ds_seq.text.tokenizer import Symbols, Tokenizers

_SIDES = {"encoder": "source", "decoder": "target"}


class Candidate(NamedTuple):
    """A token that could stand at a place of the target."""

    token: int
    log_prob: float


class Visit(NamedTuple):
    """An expert that a token visits."""

    expert: int
    weight: float
    """Factor of the expert's output."""


class PairInsight(NamedTuple):
    """What a model does with a pair."""

    log_probs: list[float]
    """(T,) log-probability of each token of the target; natural logarithms."""
    candidates: list[list[Candidate]]
    """The most probable tokens at each of the T places, the best first."""
    encoder_attention: tuple[Tensor, ...]
    """(H, S, S) of each layer; empty for a model without such attention."""
    decoder_attention: tuple[Tensor, ...]
    """(H, T, T) of each layer."""
    cross_attention: tuple[Tensor, ...]
    """(H, T, S) of each layer."""
    visits: list[list[list[Visit]]]
    """For each call of a layer with experts, the experts of each of its n tokens."""


class PieceCandidate(NamedTuple):
    """A piece that could stand at a place of the target."""

    piece: str
    log_prob: float


class LayerVisits(NamedTuple):
    """The experts that tokens visit in a call of a layer."""

    name: str
    """Name of the layer, such as `encoder 1`."""
    num_experts: int
    side: str | None
    """Whose tokens they are: `source` or `target`; None outside the stacks."""
    visits: list[list[Visit]]
    """For each of the n tokens, its experts."""


@dataclass(frozen=True)
class PairExplanation:
    """What a model does with a pair, in pieces of the vocabulary.

    Attributes:
        source: (S,) pieces of the source, special symbols included.
        target_ids: (T,) ids of the target, the end symbol included.
        target: (T,) their pieces.
        text: the target as plain text.
        log_probs: (T,) log-probability of each piece of the target; natural logarithms.
        candidates: the most probable pieces at each of the T places, the best first.
        encoder_attention: (H, S, S) weights of each layer, float32 on the CPU; empty for a model
            without such attention.
        decoder_attention: (H, T, T) of each layer.
        cross_attention: (H, T, S) of each layer.
        experts: experts of each token, by call of a layer with experts; empty for a dense model.
    """

    source: list[str]
    target_ids: list[int]
    target: list[str]
    text: str
    log_probs: list[float]
    candidates: list[list[PieceCandidate]]
    encoder_attention: tuple[Tensor, ...]
    decoder_attention: tuple[Tensor, ...]
    cross_attention: tuple[Tensor, ...]
    experts: list[LayerVisits]


class RoutingRecorder:
    """Records what the routers of a model choose, for the thread that asks.

    The hooks stay on the model. Searches in other threads pass them by, so one model can explain
    and translate at the same time.

    Args:
        model: the model; a dense one has nothing to record.

    Attributes:
        num_experts: number of experts of each call of a layer with experts.
    """

    def __init__(self, model: nn.Module) -> None:
        self._found = threading.local()
        layers = moe_calls(model)
        self.num_experts = [layer.num_experts for layer in layers]
        for gate in {layer.gate: None for layer in layers}:
            gate.register_forward_hook(self._record)

    @contextmanager
    def recording(self) -> Iterator[list[Routing]]:
        """Collect what routers return in this thread, in the order of their calls."""
        calls: list[Routing] = []
        self._found.calls = calls
        try:
            yield calls
        finally:
            self._found.calls = None

    def _record(self, gate: nn.Module, inputs: object, routing: Routing) -> None:
        calls = vars(self._found).get("calls")
        if calls is not None:
            calls.append(routing)


@torch.no_grad()
def explain_pair(
    model: Callable[..., ModelOutput],
    recorder: RoutingRecorder,
    symbols: Symbols,
    pair: ForcedPair,
    device: torch.device,
    num_candidates: int,
) -> PairInsight:
    """Pass a pair through a model and return what it does.

    Args:
        model: the model, in evaluation mode.
        recorder: recorder of this model.
        symbols: special symbols of the target.
        pair: the pair.
        device: device of the model.
        num_candidates: most candidates for each place of the target.
    """
    batch = collate_pairs([pair], symbols, device)
    with recorder.recording() as routings:
        output = model(batch.inputs, "attention")
    scores = output.logits.log_softmax(-1, dtype=torch.float32)  # (T, V)
    chosen = scores.gather(1, batch.real_labels[:, None]).squeeze(1)
    best, tokens = scores.topk(min(num_candidates, scores.shape[1]), dim=1)
    candidates = [
        [Candidate(*item) for item in zip(row, row_scores, strict=True)]
        for row, row_scores in zip(tokens.tolist(), best.tolist(), strict=True)
    ]
    layers = output.layers
    return PairInsight(
        chosen.tolist(),
        candidates,
        _single(() if layers is None else layers.encoder_attention),
        _single(() if layers is None else layers.decoder_attention),
        _single(() if layers is None else layers.cross_attention),
        [_visits(routing) for routing in routings],
    )


def describe_pair(
    model: Callable[..., ModelOutput],
    recorder: RoutingRecorder,
    tokenizers: Tokenizers,
    pair: ForcedPair,
    device: torch.device,
    num_candidates: int,
    layers: Sequence[str],
) -> PairExplanation:
    """Pass a pair through a model, and describe for each subword what it does.

    Args:
        model: see `explain_pair`, also for `recorder`, `pair`, `device` and `num_candidates`.
        recorder: recorder of this model.
        tokenizers: tokenizers of both sides.
        pair: the pair.
        device: device of the model.
        num_candidates: most candidates for each place of the target.
        layers: names of the layers with experts, by call.
    """
    symbols, pieces = tokenizers.symbols, tokenizers.target.pieces
    found = explain_pair(model, recorder, symbols, pair, device, num_candidates)
    ids = [*pair.target, symbols.eos]
    calls = zip(layers, recorder.num_experts, found.visits, strict=True)
    return PairExplanation(
        source=tokenizers.source.pieces(pair.source),
        target_ids=ids,
        target=pieces(ids),
        text=plain_text(tokenizers.target, pair.target),
        log_probs=found.log_probs,
        candidates=[
            [PieceCandidate(pieces([each.token])[0], each.log_prob) for each in row]
            for row in found.candidates
        ],
        encoder_attention=found.encoder_attention,
        decoder_attention=found.decoder_attention,
        cross_attention=found.cross_attention,
        experts=[
            LayerVisits(name, number, _SIDES.get(name.split()[0]), visits)
            for name, number, visits in calls
        ],
    )


def _single(maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the maps of the only pair of a batch, as float32 on the CPU."""
    return tuple(weights[0].float().cpu() for weights in maps)


def _visits(routing: Routing) -> list[list[Visit]]:
    """Return the valid choices of each token."""
    valid = torch.ones_like(routing.experts) if routing.valid is None else routing.valid
    rows = zip(routing.experts.tolist(), routing.weights.tolist(), valid.tolist(), strict=True)
    return [
        [Visit(expert, weight) for expert, weight, is_valid in zip(*row, strict=True) if is_valid]
        for row in rows
    ]
