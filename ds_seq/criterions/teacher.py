"""What a criterion may ask of a teacher.

Shapes: N real target tokens of the batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ds_seq.data.batch import Batch, TopTokens
from ds_seq.models.output import LayerOutputs


class TeacherOutput(NamedTuple):
    """A teacher's opinion of a batch; nothing in it takes a gradient."""

    logits: Tensor | None
    """(N, V), or logarithms of probabilities, which softmax takes alike; None: see `top`."""
    top: TopTokens | None = None
    """What a cache has kept of the distribution, where there are no logits."""
    layers: LayerOutputs | None = None
    """Hidden states and attention maps, where they were asked for."""


Teacher = Callable[[Batch], TeacherOutput]
