"""Adaptive input and adaptive softmax of fairseq: their tensors, and what they compute.

Shapes: L length, D width of the states, W width of a band, n its tokens, b number of bands but the
first, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_INPUT, _SOFTMAX = "decoder.embed_tokens", "decoder.adaptive_softmax"
_HEAD = f"{_SOFTMAX}.head"
_CHOICE = f"{_HEAD}.class_proj.weight"  # of a softmax that shares its tables with the input
_EMPTY = {
    f"{_SOFTMAX}.version": "version of the names",
    f"{_HEAD}._float_tensor": "empty",
    f"{_INPUT}._float_tensor": "empty",
}
_SAME = "the same as another one"


class Taken(NamedTuple):
    """What one of our tensors is made of."""

    name: str
    part: Callable[[Tensor], Tensor]
    how: str
    """How it is made of it, see `Entry`."""


def adaptive_source(name: str, shape: torch.Size, state: Mapping[str, Tensor]) -> Taken | None:
    """Return of what a tensor of adaptive input or softmax is made; None for another tensor.

    Args:
        name: our name.
        shape: our shape.
        state: tensors of fairseq by name.
    """
    match = re.fullmatch(r"(target_embedding\.bands|output\.bands|output\.narrow)\.(\d+)\.(\w+)",
                         name)  # fmt: skip
    if name == "output.choice.weight":
        if _CHOICE in state:
            return Taken(_CHOICE, lambda value: value, "renamed")
        return Taken(f"{_HEAD}.weight", lambda value: value[-shape[0] :], "joined")
    if match is None:
        return None
    place, number, kind = match[1], int(match[2]), match[3]
    if place == "target_embedding.bands":
        part = {"weight": 0, "projection": 1}[kind]
        return Taken(f"{_INPUT}.embeddings.{number}.{part}.weight", lambda value: value, "renamed")
    if place == "output.narrow":
        return Taken(f"{_SOFTMAX}.tail.{number}.0.weight", lambda value: value, "renamed")
    if number == 0:
        return Taken(f"{_HEAD}.weight", lambda value: value[: shape[0]], "joined")
    tail = f"{_SOFTMAX}.tail.{number - 1}"
    if kind == "projection":
        return Taken(f"{tail}.0.weight", lambda value: value.t(), "renamed")
    return Taken(f"{tail}.2.weight", lambda value: value, "renamed")


def left_of_adaptive(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the tensors that are not needed, with the reason: buffers, and copies of the input."""
    left = {name: why for name, why in _EMPTY.items() if name in state}
    if has_adaptive_softmax(state) and "decoder.additional_fc.weight" in state:
        never = "never read, as the softmax takes the states"
        left |= {f"decoder.additional_fc.{kind}": never for kind in ("weight", "bias")}
    copies = {f"{_HEAD}.word_proj.weight": f"{_INPUT}.embeddings.0.0.weight"}
    for number in range(_num_tails(state)):
        place = f"{_INPUT}.embeddings.{number + 1}"
        copies[f"{_SOFTMAX}.tail.{number}.2.weight"] = f"{place}.0.weight"
        copies[f"{_SOFTMAX}.tail.{number}.0.weight"] = f"{place}.1.weight"
    for copy, original in copies.items():
        if copy in state and original in state and torch.equal(state[copy], state[original]):
            left[copy] = _SAME
    return left


def has_adaptive_softmax(state: Mapping[str, Tensor]) -> bool:
    """Return whether the output is an adaptive softmax."""
    return any(name.startswith(f"{_HEAD}.") for name in state)


def adaptive_embedded(state: Mapping[str, Tensor], ids: Tensor) -> Tensor | None:
    """Embed tokens (L,) by adaptive input: (L, D); None for a model without."""
    tables: list[Tensor] = []
    while f"{_INPUT}.embeddings.{len(tables)}.0.weight" in state:
        place = f"{_INPUT}.embeddings.{len(tables)}"
        tables.append(state[f"{place}.0.weight"] @ state[f"{place}.1.weight"].T)
    return torch.cat(tables)[ids] if tables else None


def adaptive_scores(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the log-probabilities (L, V) of all tokens after states (L, D)."""
    tails = _num_tails(state)
    if _CHOICE in state:
        head = torch.cat([state[f"{_HEAD}.word_proj.weight"], state[_CHOICE]])
    else:
        head = state[f"{_HEAD}.weight"]
    first = (x @ head.T).log_softmax(-1)
    parts = [first[:, : first.size(1) - tails]]
    for number in range(tails):
        place = f"{_SOFTMAX}.tail.{number}"
        table, map = state[f"{place}.2.weight"], state[f"{place}.0.weight"]
        # a map that is shared with the input leads the other way
        is_shared = _CHOICE in state and torch.equal(
            map, state[f"{_INPUT}.embeddings.{number + 1}.1.weight"]
        )
        narrow = x @ (map if is_shared else map.T)
        chosen = first[:, first.size(1) - tails + number, None]
        parts.append((narrow @ table.T).log_softmax(-1) + chosen)
    return torch.cat(parts, 1)


def _num_tails(state: Mapping[str, Tensor]) -> int:
    return sum(re.fullmatch(rf"{_SOFTMAX}\.tail\.\d+\.2\.weight", name) is not None
               for name in state)  # fmt: skip
