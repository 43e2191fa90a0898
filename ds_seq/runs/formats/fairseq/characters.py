"""Character embeddings of fairseq: their tensors, and what they compute.

Shapes: L length, U bytes, W width of the embeddings of bytes, D width of the model, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_PLACE = "decoder.embed_tokens"
_CODES = f"{_PLACE}.codes"  # not of the checkpoint: what it computes from the dictionary
_BYTES, _FIRST_WORD, _EOS, _UNK, _PAD = 50, 4, 2, 3, 1
_NAMES = {
    "weight": "char_embeddings.weight",
    "symbols": "symbol_embeddings",
    "projection.weight": "projection.weight",
    "projection.bias": "projection.bias",
}


def character_source(name: str, state: Mapping[str, Tensor]) -> str | None:
    """Return the tensor of fairseq that one of ours is; None for another tensor.

    Args:
        name: our name.
        state: tensors of fairseq by name.
    """
    if f"{_PLACE}.char_embeddings.weight" not in state or not name.startswith("target_embedding."):
        return None
    own = name.removeprefix("target_embedding.")
    if own in _NAMES:
        return f"{_PLACE}.{_NAMES[own]}"
    return f"{_PLACE}.{re.sub(r'^highway', 'highway.layers', own)}"


def with_codes(state: Mapping[str, Tensor], pieces: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors together with the bytes of all tokens (V, U), if a model reads them."""
    if f"{_PLACE}.char_embeddings.weight" not in state:
        return dict(state)
    names = list(pieces)
    rows = torch.zeros(len(names), _BYTES, dtype=torch.int64)
    for number, piece in enumerate(names[_FIRST_WORD:], start=_FIRST_WORD):
        content = torch.tensor(list(piece.encode())[:_BYTES], dtype=torch.int64)
        rows[number, : len(content)] = content + 1
    return {**state, _CODES: rows}


def character_embedded(state: Mapping[str, Tensor], ids: Tensor) -> Tensor | None:
    """Embed tokens (L,) by their bytes: (L, D); None for a model with a table."""
    if _CODES not in state:
        return None
    return torch.stack([_embedded(state, int(token)) for token in ids])


def _embedded(state: Mapping[str, Tensor], token: int) -> Tensor:
    symbols = state[f"{_PLACE}.symbol_embeddings"]
    if token in (_EOS, _UNK):
        return symbols[0 if token == _EOS else 1]
    if token == _PAD:
        return torch.zeros_like(symbols[0])
    x = state[f"{_PLACE}.char_embeddings.weight"][state[_CODES][token]]  # (U, W)
    found, number = [], 0
    while f"{_PLACE}.convolutions.{number}.weight" in state:
        kernel = state[f"{_PLACE}.convolutions.{number}.weight"]
        size = kernel.size(2)
        sums = [(kernel * x[at : at + size].T).sum((1, 2)) for at in range(len(x) - size + 1)]
        bias = state[f"{_PLACE}.convolutions.{number}.bias"]
        found.append((torch.stack(sums).amax(0) + bias).relu())
        number += 1
    y, layer = torch.cat(found), 0
    while f"{_PLACE}.highway.layers.{layer}.weight" in state:
        place = f"{_PLACE}.highway.layers.{layer}"
        value, gate = (state[f"{place}.weight"] @ y + state[f"{place}.bias"]).chunk(2)
        y = gate.sigmoid() * y + (1 - gate.sigmoid()) * value.relu()
        layer += 1
    return state[f"{_PLACE}.projection.weight"] @ y + state[f"{_PLACE}.projection.bias"]
