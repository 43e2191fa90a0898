"""The interface of a body, the part of a sub-layer inside its residual.

Attention and feed-forwards are bodies. A layer is a list of bodies, each in a residual
(`ds_seq.models.stack`). A body reads only its arguments and reports only through its return value,
so that activation checkpointing (which calls it twice) and ZeRO-3 (whose hooks walk tuples and
dicts) are safe.

Shapes: B batch, T length, S source length, D model width, H heads, K beam width, N = B K
hypotheses (row n belongs to sentence n // K).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor, nn

from ds_seq.modules.kv_cache import BeamPaths, KeptSentences

if TYPE_CHECKING:
    from ds_seq.modules.local_attention import LocalAttention
    from ds_seq.modules.multiway import Ways
    from ds_seq.modules.unpadded_attention import Lengths


class Context(NamedTuple):
    """What the sub-layers of a stack may read in addition to the hidden states."""

    token_mask: Tensor | None = None
    """(B, T) bool, True at real tokens, which sparse bodies route; None if all are real."""
    attention_mask: Tensor | None = None
    """Mask of self-attention, (B, 1, 1, T) or wider, see `ds_seq.modules.attention`; or None."""
    source: Tensor | None = None
    """(B, S, D) encoded source; None if there is none, and in `Body.step`, whose pasts hold it."""
    source_mask: Tensor | None = None
    """(B, 1, 1, S), added to the scores of cross-attention, or None."""
    tag: Tensor | None = None
    """(B, D) embedding of each sentence's language tag, for bodies that route by it, or None."""
    tokens: Tensor | None = None
    """(B, T) int64 numbers of the tokens, for bodies that route by them, or None."""
    position_bias: Tensor | None = None
    """(H, T, T) or (B, H, T, T), in a step (B, H, 1, C) or (B, H, K, C), H heads or 1; added to
    the scores of self-attention."""
    lengths: Lengths | None = None
    """Real tokens of the batch, which an encoder may use in place of `attention_mask`."""
    source_lengths: Lengths | None = None
    """The same of the source, in place of `source_mask`."""
    local: LocalAttention | None = None
    """Self-attention in blocks, in place of `position_bias`; None in a step and with maps."""
    with_maps: bool = False
    """Whether to return attention maps; always False in a step."""
    with_aux: bool = True
    """Whether sparse bodies return losses and statistics."""
    sets: Tensor | None = None
    """(B,) int64, set of parameters of each sentence's decoder, or None."""
    ways: Ways | None = None
    """Sets of the B * T tokens, for layers with several sets of parameters, or None."""
    source_ways: Ways | None = None
    """Sets of the B * S source tokens in cross-attention, or None."""
    token_rows: Tensor | None = None
    """(N,) int64, the rows of real tokens among the B * T, ascending; None to derive them from
    `token_mask`."""
    adapters: Any = None
    """`ds_seq.modules.adapter.AdapterRows`: which sentences pass through which adapter; or None."""


class BodyOutput(NamedTuple):
    """What a body returns."""

    y: Tensor
    """(B, T, D) hidden states."""
    aux: Any = None
    """`ds_seq.moe.output.MoeAux` of a sparse body if `Context.with_aux`; else None."""
    map: Tensor | None = None
    """(B, H, T, S) attention map if `Context.with_maps`; else None."""


class Past(Protocol):
    """The state of one call of a body over the tokens decoded so far."""

    def reorder(self, rows: Tensor) -> None:
        """Let hypothesis n continue hypothesis `rows[n]` of the same sentence.

        Args:
            rows: (N,) int64, the hypothesis that each hypothesis continues.
        """

    def keep_sentences(self, kept: KeptSentences) -> None:
        """Keep only some sentences, with all their hypotheses."""


class Body(Protocol):
    """A module that transforms hidden states, for whole sequences or token by token.

    `step` is not a module call, and under ZeRO-3 only module calls gather parameters. A body must
    therefore keep its parameters in child modules.
    """

    def __call__(self, x: Tensor, context: Context) -> BodyOutput:
        """Transform hidden states x (B, T, D) of whole sequences."""

    def start_past(self, context: Context, paths: BeamPaths) -> Any:
        """Return a `Past` of length 0, or None for a body without state.

        Args:
            context: context with the encoded source, if there is one.
            paths: number of sentences and hypotheses, and which keys belong to which hypothesis.
        """

    def step(self, x: Tensor, past: Any, context: Context) -> Tensor:
        """Transform the newest token of each hypothesis.

        Args:
            x: hidden states of the newest tokens, (B, K, D).
            past: state returned by `start_past`; updated in place.
            context: context without the source.

        Returns:
            (B, K, D).
        """


class TokenwiseBody(nn.Module):
    """Base class of bodies that transform each token independently and need no state."""

    def start_past(self, context: Context, paths: BeamPaths) -> None:
        """See `Body`; returns None."""

    def step(self, x: Tensor, past: None, context: Context) -> Tensor:
        """See `Body`."""
        output: BodyOutput = self(x, context)
        return output.y
