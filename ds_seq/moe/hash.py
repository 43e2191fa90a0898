"""Routing by a fixed hash of the token: the baseline that a learned router has to beat.

Shapes: M rows, padding included, N real tokens, D model, E experts, K choices per
token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds_seq.moe.choice import RoutingChoice
from ds_seq.moe.router import Router, Routing, rows_of

_WORD = 0xFFFFFFFF


class TokenHashRouter(Router):
    """Choose K experts by the number of the token alone (Hash Layers, arXiv:2106.04426).

    The decoder's tokens are those that it reads. Each E consecutive numbers, from a multiple of E,
    are dealt out to all E experts, in an order that is as good as random; as vocabularies have
    tokens of similar frequency next to each other, this is close to the paper's balanced hash. A
    token's experts differ, have equal weights, and are others in each layer. Nothing is learned,
    and the losses are figures without a gradient.

    Args:
        num_experts: number of experts, E.
        top_k: number of experts per token, K.
        layer: number of the layer among those with experts.
    """

    expert_tensors = ()
    reads_tokens = True

    def __init__(self, num_experts: int, top_k: int, layer: int) -> None:
        super().__init__(num_experts, top_k, "rank")
        self.layer = layer

    def draw_parameters(self) -> None:
        """Do nothing: there are none."""

    def forward(
        self,
        x: Tensor,
        real: Tensor | None = None,
        shape: tuple[int, int] | None = None,
        tag: Tensor | None = None,
        with_losses: bool = True,
        tokens: Tensor | None = None,
    ) -> Routing:
        """See `Router`.

        Args:
            tokens: (M,) int64 numbers of the tokens.

        Raises:
            RuntimeError: `tokens` is missing.
        """
        if tokens is None:
            raise RuntimeError("routing by hash needs the number of each token (tokens)")
        experts = self.experts_of(rows_of(tokens, real))
        weights = torch.full(experts.shape, 1 / self.top_k, device=x.device)
        probabilities = weights.new_zeros(len(experts), self.num_experts)
        probabilities.scatter_(1, experts, weights)
        log_partition = weights.new_zeros(len(experts), 1)
        choice = RoutingChoice(experts, weights, probabilities, log_partition)
        return self.routing(choice, with_losses)

    def experts_of(self, tokens: Tensor) -> Tensor:
        """Return the experts (N, K) of tokens (N,)."""
        count = self.num_experts
        block, place = tokens // count, (tokens % count)[:, None]
        order = self._keys(block, 0)
        first = (order < order.gather(1, place)).sum(1, keepdim=True)  # (N, 1)
        if self.top_k == 1:
            return first
        others = self._keys(block, 1)[:, 1:].topk(self.top_k - 1, largest=False).indices + 1
        return torch.cat([first, (first + others) % count], dim=1)

    def _keys(self, block: Tensor, use: int) -> Tensor:
        """Return E numbers (N, E), all different, for each block (N,) of tokens."""
        slots = torch.arange(self.num_experts, device=block.device)
        seed = _mixed(_mixed(block) + 2 * self.layer + use)
        return _mixed(seed[:, None] + slots * 0x9E3779B9) * self.num_experts + slots


def _mixed(x: Tensor) -> Tensor:
    """Return 32 bits that depend on all bits of `x` int64 (the end of MurmurHash3)."""
    x = x & _WORD
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & _WORD
    return x ^ (x >> 16)
