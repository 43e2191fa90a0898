"""The interface of teachers for criterions.

Shapes: N real target tokens of the batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ds_seq.data.batch import Batch, TopTokens
from ds_seq.models.output import LayerOutputs


class TeacherOutput(NamedTuple):
    """A teacher's output for a batch; requires no gradient."""

    logits: Tensor | None
    """(N, V) logits or log-probabilities, which have the same softmax; None if `top` is given."""
    top: TopTokens | None = None
    """The part of the distribution stored in a cache, if there are no logits."""
    layers: LayerOutputs | None = None
    """Hidden states and attention maps, if requested."""


Teacher = Callable[[Batch], TeacherOutput]
