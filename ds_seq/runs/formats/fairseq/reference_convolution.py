"""What fairseq's convolutions compute, in a few lines of plain torch; see `reference.py`.

Shapes: L length, D width, H heads, S size of a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.convolutions import FIRST_ROW
from ds_seq.runs.formats.fairseq.adaptive import adaptive_scores, has_adaptive_softmax

_HALF = math.sqrt(0.5)


def convolved(
    state: Mapping[str, Tensor], given: Given, place: str, x: Tensor, is_causal: bool
) -> Tensor:
    """Return what the convolution of a layer, with both maps around it, makes of x (L, D)."""
    stack = place.partition(".")[0]
    heads = given[f"{stack}_attention_heads"]
    bias = state[f"{place}.linear1.bias"]
    x = F.linear(x, state[f"{place}.linear1.weight"], bias)
    if len(bias) != state[f"{place}.linear2.weight"].size(1):
        x = F.glu(x, -1)
    dynamic = state.get(f"{place}.conv.weight_linear.weight")
    if dynamic is not None:
        kernels = (x @ dynamic.T).view(len(x), heads, -1)
    else:
        kernels = state[f"{place}.conv.weight"].view(1, heads, -1).expand(len(x), -1, -1)
    if str(given["weight_softmax"]).lower() not in ("false", "0"):
        kernels = kernels.softmax(-1)
    size = kernels.size(-1)
    left = size - 1 if is_causal else (size - 1) // 2
    padded = F.pad(x, (0, 0, left, size - 1 - left)).view(len(x) + size - 1, heads, -1)
    rows = [
        torch.einsum("shw,hs->hw", padded[token : token + size], kernels[token]).flatten()
        for token in range(len(x))
    ]
    return F.linear(
        torch.stack(rows), state[f"{place}.linear2.weight"], state[f"{place}.linear2.bias"]
    )


class GatedReference:
    """A model of gated convolutions of fairseq.

    Args:
        state: its tensors by name, floating-point ones in float64.
        section: our section `model` of it.
    """

    def __init__(self, state: Mapping[str, Tensor], section: Mapping[str, Any]) -> None:
        self._state, self._section = state, section

    @torch.no_grad()
    def logits(self, source: Sequence[int], target: Sequence[int]) -> Tensor:
        """Score every next token of a target, see `Reference.logits`."""
        embedded, hidden = self._stack("encoder", source, lambda _, x, embedded: x)
        hidden = self._map("encoder.fc2", hidden)
        values = (hidden + embedded) * _HALF

        def attend(layer: int, x: Tensor, embedded: Tensor) -> Tensor:
            place = f"decoder.attention.{layer}"
            query = (self._map(f"{place}.in_projection", x) + embedded) * _HALF
            taken = (query @ hidden.T).softmax(-1) @ values * math.sqrt(len(source))
            return (self._map(f"{place}.out_projection", taken) + x) * _HALF

        _, decoded = self._stack("decoder", target, attend)
        return self._map("decoder.fc3", self._map("decoder.fc2", decoded))

    def _stack(
        self, stack: str, ids: Sequence[int], attend: Callable[[int, Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        state = self._state
        embedded = state[f"{stack}.embed_tokens.weight"][list(ids)]
        positions = state.get(f"{stack}.embed_positions.weight")
        if positions is not None:
            embedded = embedded + positions[FIRST_ROW : FIRST_ROW + len(ids)]
        x = self._map(f"{stack}.fc1", embedded)
        inputs = [x]
        for layer, (_, _, *back) in enumerate(self._section[f"{stack}_convolutions"]):
            kernel = self._weight(f"{stack}.convolutions.{layer}", (0, 1))  # (S, I, O)
            size = kernel.size(0)
            left = size - 1 if stack == "decoder" else (size - 1) // 2
            padded = F.pad(x, (0, 0, left, size - 1 - left))
            units = sum(padded[s : s + len(x)] @ kernel[s] for s in range(size))
            units = F.glu(units + state[f"{stack}.convolutions.{layer}.bias"], -1)
            kept = f"{stack}.projections.{layer}"
            x = attend(layer, units, embedded)
            if back != [0]:
                before = inputs[-back[0]] if back else inputs[-1]
                before = self._map(kept, before) if f"{kept}.bias" in state else before
                x = (x + before) * _HALF
            inputs.append(x)
        return embedded, x

    def _map(self, place: str, x: Tensor) -> Tensor:
        return x @ self._weight(place, (1,)).T + self._state[f"{place}.bias"]

    def _weight(self, place: str, summed: tuple[int, ...]) -> Tensor:
        """Return a weight with its norm applied, or one without (a shared table)."""
        direction = self._state.get(f"{place}.weight_v")
        if direction is None:
            return self._state[f"{place}.weight"]
        norms = direction.square().sum(summed, keepdim=True).sqrt()
        return direction / norms * self._state[f"{place}.weight_g"]


class GatedLmReference(GatedReference):
    """A language model of gated convolutions of fairseq."""

    @torch.no_grad()
    def logits(self, source: Sequence[int], target: Sequence[int]) -> Tensor:
        """Score every next token of a text, see `Reference.logits`; there is no source."""
        _, decoded = self._stack("decoder", target, lambda _, x, embedded: x)
        if has_adaptive_softmax(self._state):
            return adaptive_scores(self._state, decoded)
        return self._map("decoder.fc3", self._map("decoder.fc2", decoded))
