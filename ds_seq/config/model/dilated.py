"""Dilated attention in place of a stack's self-attention: `encoder_mixer: dilated`."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from ds_seq.config.base import FieldErrors, NamedConfig
from ds_seq.config.model.stack import Width


class DilatedConfig(NamedConfig):
    """Attention within segments, coarser in longer ones (LongNet, Ding et al. 2023).

    It has the parameters of multi-head attention, and takes time and memory that grow with the
    length of a text and not with its square. The defaults are those of the paper.
    """

    name: Literal["dilated"] = Field(default="dilated", description="Selects this mixer.")
    segment_lengths: list[Width] = Field(
        default=[2048, 4096, 8192, 16384, 32768],
        min_length=1,
        max_length=32,
        description="Lengths of the segments within which tokens see each other, ascending. A text "
        "that is shorter than a segment is one segment.",
    )
    dilations: list[Width] = Field(
        default=[1, 2, 4, 6, 12],
        min_length=1,
        max_length=32,
        description="For each length of segments, that every n-th token of a segment is used: head "
        "h begins with token h mod n. The first is 1, so that every token sees its neighbors.",
    )

    @model_validator(mode="after")
    def _check_lists(self) -> DilatedConfig:
        lengths, dilations = self.segment_lengths, self.dilations
        errors = []
        if any(one >= other for one, other in pairwise(lengths)):
            errors.append(("segment_lengths", f"must ascend, not {lengths}"))
        if len(dilations) != len(lengths):
            message = f"{len(dilations)} for {len(lengths)} segment_lengths; give one for each"
            errors.append(("dilations", message))
        elif dilations[0] != 1:
            message = f"the first must be 1, not {dilations[0]}, so that every token sees others"
            errors.append(("dilations", message))
        for length, dilation in zip(lengths, dilations, strict=False):
            if dilation > length:
                message = f"{dilation} leaves no token in a segment of {length} to some heads"
                errors.append(("dilations", message))
        if errors:
            raise FieldErrors(errors)
        return self

    @property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """Pairs of a segment's length and its dilation."""
        return tuple(zip(self.segment_lengths, self.dilations, strict=True))
