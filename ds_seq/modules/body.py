"""What a sub-layer is made of: the body interface that attention and feed-forwards share.

A layer is a list of bodies, each in a residual (`ds_seq.models.stack`). Everything that a body
reads is in its arguments and everything it says is in what it returns: only so do activation
checkpointing (which calls twice) and ZeRO-3 (whose hooks walk tuples and dicts) leave it unharmed.

Shapes: B batch, T length, S source length, D model width, H heads, K beam width, N = B K
hypotheses (row n belongs to sentence n // K).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from ds_seq.modules.kv_cache import BeamPaths, Kept


class Context(NamedTuple):
    """What all sub-layers of a stack may read besides the hidden states."""

    token_mask: Tensor | None = None
    """(B, T) bool, True at real tokens: what sparse bodies route; None when all are real."""
    attention_mask: Tensor | None = None
    """Mask of self-attention, (B, 1, 1, T) or wider, see `ds_seq.modules.attention`; or None."""
    source: Tensor | None = None
    """(B, S, D) encoded source; None without one, and in `Body.step`, whose pasts hold it."""
    source_mask: Tensor | None = None
    """(B, 1, 1, S), added to the scores of cross-attention, or None."""
    tag: Tensor | None = None
    """(B, D) embedding of each sentence's language tag, for bodies routed by it, or None."""
    position_bias: Tensor | None = None
    """(H, T, T) or (B, H, T, T), in a step (B, H, K, C), added to the scores of self-attention."""
    with_maps: bool = False
    """Whether attention maps are wanted, too; never in a step."""
    with_aux: bool = True
    """Whether losses and statistics of sparse bodies are wanted."""


class BodyOutput(NamedTuple):
    """What a body returns."""

    y: Tensor
    """(B, T, D)."""
    aux: Any = None
    """`ds_seq.moe.output.MoeAux` of a sparse body, where it is wanted; else None."""
    map: Tensor | None = None
    """(B, H, T, S) what attention has looked at, where it is wanted; else None."""


class Past(Protocol):
    """What one call of a body remembers of the tokens decoded so far."""

    def reorder(self, rows: Tensor) -> None:
        """Let hypothesis n continue hypothesis `rows[n]` of the same sentence.

        Args:
            rows: (N,) int64.
        """

    def keep_sentences(self, kept: Kept) -> None:
        """Keep some sentences with all their hypotheses."""


class Body(Protocol):
    """A module that transforms hidden states, as a whole or token by token.

    `step` is no module call: under ZeRO-3 only the calls of child modules gather parameters, so a
    body that owns some itself must leave them to a child.
    """

    def __call__(self, x: Tensor, context: Context) -> BodyOutput:
        """Transform x (B, T, D)."""

    def start_past(self, context: Context, paths: BeamPaths) -> Any:
        """A `Past` at length 0, or None for a body that needs none.

        Args:
            context: with the encoded source, where there is one.
            paths: of the searches: how many sentences and hypotheses there are, and which keys
                belong to which of them.
        """

    def step(self, x: Tensor, past: Any, context: Context) -> Tensor:
        """Transform the newest token of each hypothesis.

        Args:
            x: (B, K, D).
            past: what `start_past` has returned; it is extended.
            context: without the source.

        Returns:
            (B, K, D).
        """


class TokenwiseBody(nn.Module):
    """Base of bodies that look at each token on its own: there is nothing to remember."""

    def start_past(self, context: Context, paths: BeamPaths) -> None:
        """See `Body`; None."""

    def step(self, x: Tensor, past: None, context: Context) -> Tensor:
        """See `Body`."""
        output: BodyOutput = self(x, context)
        return output.y
