"""Several sets of parameters, of which each token uses one (multiway, Bao et al., 2022, "VLMo").

Tokens of all sets attend to each other; what transforms a token on its own (linear maps, norms,
feed-forwards) exists once per set. Every set is called in every forward pass, if need be without
tokens, so that all ranks take part in the same collectives and unused sets have gradients of zero.

Shapes: B batch, T length, N = B T tokens, D model width, W sets, V vocabulary of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ds_seq.modules.body import BodyOutput, Context, TokenwiseBody
from ds_seq.modules.feed_forward import FeedForward


class Ways(NamedTuple):
    """Which set each of N tokens uses."""

    order: Tensor
    """(N,) int64, the tokens ordered by their set."""
    places: Tensor
    """(N,) int64, the place of each token in that order."""
    counts: list[int]
    """(W,) number of tokens of each set."""

    @classmethod
    def of(cls, sets: Tensor, num_sets: int) -> Ways:
        """Return the ways of tokens with these sets (B, T) int64.

        On a GPU the host waits for the counts.
        """
        flat = sets.flatten()
        order = flat.argsort(stable=True)
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        return cls(order, places, flat.bincount(minlength=num_sets).tolist())


def by_way(parts: Sequence[Callable[[Tensor], Tensor]], x: Tensor, ways: Ways) -> Tensor:
    """Apply to each token what belongs to its set.

    Args:
        parts: for each set, a function of tokens (n, ...).
        x: tokens (B, T, ...).
        ways: the sets of the tokens.

    Returns:
        (B, T, ...).
    """
    groups = x.flatten(0, 1).index_select(0, ways.order).split(ways.counts)
    done = torch.cat([part(group) for part, group in zip(parts, groups, strict=True)])
    return done.index_select(0, ways.places).unflatten(0, x.shape[:2])


class Multiway(nn.Module):
    """A linear map or a norm for each set.

    Args:
        sets: modules of the same kind and size.
    """

    def __init__(self, sets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.sets = nn.ModuleList(sets)

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the fused maps of each set, see `Linear`."""
        return cast(tuple[int, ...], self.sets[0].widths)

    def forward(self, x: Tensor, ways: Ways) -> Tensor:
        """Transform each token of x (B, T, ...) by the module of its set."""
        return by_way(cast(Sequence[nn.Module], self.sets), x, ways)


class MultiwayFeedForward(TokenwiseBody):
    """A feed-forward for each set.

    Args:
        sets: feed-forwards of the same size.
    """

    def __init__(self, sets: Sequence[FeedForward]) -> None:
        super().__init__()
        self.sets = nn.ModuleList(sets)

    def forward(self, x: Tensor, context: Context) -> BodyOutput:
        """Transform x (B, T, D) by the sets of `context.ways`."""
        assert context.ways is not None
        parts = [_of_tokens(cast(FeedForward, each)) for each in self.sets]
        return BodyOutput(by_way(parts, x, context.ways))


def _of_tokens(feed_forward: FeedForward) -> Callable[[Tensor], Tensor]:
    def apply(tokens: Tensor) -> Tensor:
        output: BodyOutput = feed_forward(tokens[None])
        return output.y[0]

    return apply


class Markers(nn.Module):
    """Finds the sets of source tokens: the set of the last marker up to each, 0 before the first.

    Args:
        num_sets: number of sets, W.
        vocab_size: size of the vocabulary of the source, V.
    """

    sets: Tensor
    """(V,) int64 set of each marker, -1 for other tokens; saved with the weights."""

    def __init__(self, num_sets: int, vocab_size: int) -> None:
        super().__init__()
        self.num_sets = num_sets
        self.register_buffer("sets", torch.full((vocab_size,), -1))

    def mark(self, sets: Mapping[int, int]) -> None:
        """Make ids markers, each of a set; others are none any more."""
        self.sets.fill_(-1)
        for token, chosen in sets.items():
            self.sets[token] = chosen

    def forward(self, source: Tensor) -> Tensor:
        """Return the sets (B, S) int64 of source tokens (B, S)."""
        sets = self.sets[source]
        places = torch.arange(source.size(1), device=source.device)
        last = torch.where(sets >= 0, places, -1).cummax(1).values
        return torch.where(last >= 0, sets.gather(1, last.clamp(min=0)), 0)
