"""Attention heads that a model lacks, because `ds-seq prune-heads` has cut them out."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import Field

from ds_seq.config.base import Config
from ds_seq.names import ATTENTION_KINDS, AttentionKind, Stack

Head = Annotated[int, Field(ge=0, le=1_000_000)]
_OF_STACK: dict[Stack, tuple[AttentionKind, ...]] = {
    "encoder": ("encoder",),
    "decoder": ("decoder", "cross"),
}


class HeadCounts(NamedTuple):
    """What a model's attentions have before any head is cut out."""

    heads: int
    """Attention heads."""
    sharing: int
    """Heads that share keys and values."""
    width: int
    """Features of a head."""


class PrunedHeadsConfig(Config):
    """Heads, numbered from 0, that each layer's attention lacks; one list for each layer."""

    encoder: list[list[Head]] = Field(default=[], description="Self-attention of the encoder.")
    decoder: list[list[Head]] = Field(default=[], description="Self-attention of the decoder.")
    cross: list[list[Head]] = Field(default=[], description="Attention to the source.")

    def of(self, attention: AttentionKind, layer: int) -> list[int]:
        """Return the heads that the attention of a layer lacks."""
        layers: list[list[int]] = getattr(self, attention)
        return layers[layer] if layers else []

    def count(self, stack: Stack) -> int:
        """Return how many heads all layers of a stack lack."""
        return sum(
            len(heads) for attention in _OF_STACK[stack] for heads in getattr(self, attention)
        )

    def errors(self, counts: HeadCounts, layers: dict[Stack, int]) -> list[tuple[str, str]]:
        """Return lists that do not fit the model as (field, message) pairs."""
        errors: list[tuple[str, str]] = []
        for attention in ATTENTION_KINDS:
            depth = layers["encoder" if attention == "encoder" else "decoder"]
            lists: list[list[int]] = getattr(self, attention)
            if lists and len(lists) != depth:
                message = f"has {len(lists)} lists for {depth} layers; give one for each, or none"
                errors.append((attention, message))
                continue
            for layer, heads in enumerate(lists):
                problem = _problem(heads, counts)
                if problem is not None:
                    errors.append((attention, f"layer {layer}: {problem}"))
        return errors


def _problem(pruned: list[int], counts: HeadCounts) -> str | None:
    """Return what is wrong with the pruned heads of one attention."""
    wrong = [head for head in pruned if head >= counts.heads]
    if wrong:
        return f"there is no head {wrong[0]}; there are {counts.heads}, from 0"
    if sorted(set(pruned)) != pruned:
        return f"name each head once, in ascending order, not {pruned}"
    if len(pruned) == counts.heads:
        return "no head is left; keep at least one"
    for first in range(0, counts.heads, counts.sharing):
        together = set(range(first, first + counts.sharing))
        if 0 < len(together & set(pruned)) < counts.sharing:
            return (
                f"heads {first} to {first + counts.sharing - 1} share keys and values "
                "(num_kv_heads); prune all of them or none"
            )
    return None
