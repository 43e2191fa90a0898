"""RoBERTa of fairseq: the names of its tensors, and what it computes.

Its encoder is a module `sentence_encoder`, which was in a `decoder` before fairseq 0.10.

Shapes: S source length, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ds_seq.compat.fairseq.command import Given
from ds_seq.runs.formats.fairseq.names import Converter
from ds_seq.runs.formats.fairseq.reference import Reference
from ds_seq.runs.formats.imported import Entry

_PLACES = (
    (r"(encoder|decoder)\.sentence_encoder\.(.*)", r"encoder.\2"),
    (r"(encoder|decoder)\.lm_head\.(.*)", r"lm_head.\2"),
    (r"(.*)\.emb_layer_norm\.(.*)", r"\1.layernorm_embedding.\2"),
)


def plain_name(name: str) -> str:
    """Return the name that a tensor has in the encoder of a translation model."""
    for pattern, place in _PLACES:
        name = re.sub(f"^{pattern}$", place, name)
    return name


class MaskedConverter(Converter):
    """Makes the tensors of our model of those of RoBERTa; see `Converter`."""

    def __init__(self, state: Mapping[str, Tensor], path: Path, is_gated: bool) -> None:
        super().__init__({plain_name(n): value for n, value in state.items()}, path, is_gated)
        self._names = {plain_name(name): name for name in state}

    def _stored(self, name: str) -> str:
        return self._names.get(name, name)

    @property
    def entries(self) -> list[Entry]:
        """What became of each tensor, by its name in the file."""
        return [self._as_stored(entry) for entry in super().entries]

    def _as_stored(self, entry: Entry) -> Entry:
        theirs = self._stored(entry.theirs)
        is_other = entry.how == "taken" and theirs != entry.ours
        return entry._replace(theirs=theirs, how="renamed" if is_other else entry.how)


class MaskedReference(Reference):
    """A RoBERTa of fairseq: an encoder, and a head that scores each of its states."""

    def __init__(self, state: Mapping[str, Tensor], given: Given) -> None:
        super().__init__({plain_name(name): value for name, value in state.items()}, given)

    @torch.no_grad()
    def logits(self, source: Sequence[int], target: Sequence[int]) -> Tensor:
        """Score all tokens at each place of a text.

        Args:
            source: S ids.
            target: not read.

        Returns:
            (S, V).
        """
        states = self._stack("encoder", torch.tensor(source), None)
        states = self._activated(self._map("lm_head.dense", states))
        return self._map("lm_head", self._norm("lm_head.layer_norm", states))
