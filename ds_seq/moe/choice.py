"""Choosing experts by a softmax over logits, with optional exploration in training.

Shapes: N tokens, E experts, K choices per token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ds_seq.names import NOISES, SECOND_EXPERTS

_JITTER = 0.01


class RoutingChoice(NamedTuple):
    """The experts chosen for N tokens, and the distribution they were chosen from."""

    experts: Tensor
    """(N, K) int64, the most probable one first."""
    weights: Tensor
    """(N, K) float32: probabilities of the chosen experts."""
    probabilities: Tensor
    """(N, E) float32."""
    log_partition: Tensor
    """(N, 1) float32: log of the sum of exp(logit)."""
    valid: Tensor | None = None
    """(N, K) bool: False for a choice that was revoked; `None` if none was."""


class SoftmaxChoice:
    """Choose the K most probable experts of a softmax.

    In training, the choice may be randomized:

    - `noise`: `jitter` multiplies the router's input by U(0.99, 1.01). `gumbel` adds Gumbel noise
      to the logits, so that the choice is a sample from the softmax; the weights are computed
      without the noise.
    - `second_expert`, the second of two experts: `always` takes the second most probable one.
      `sampled` takes the best one after Gumbel noise on all logits but the first expert's.
      `random` takes the second most probable one with probability `min(1, 2 g)`, as in GShard
      (arXiv:2006.16668), to save computation where its weight g is small.

    Args:
        top_k: number of experts per token, K.
        noise: one of `NOISES`.
        second_expert: one of `SECOND_EXPERTS`; values other than `always` need K = 2.
        second_by_share: whether g is the second probability divided by the sum of both, as in
            GShard, which normalizes the weights before tokens are dropped; if False, g is the
            second probability itself.

    Raises:
        ValueError: unknown policy, or a `second_expert` policy with K other than 2.
    """

    def __init__(
        self,
        top_k: int,
        noise: str,
        second_expert: str,
        second_by_share: bool,
    ) -> None:
        if noise not in NOISES:
            raise ValueError(f"noise={noise!r}: one of {', '.join(NOISES)}")
        if second_expert not in SECOND_EXPERTS:
            raise ValueError(f"second_expert={second_expert!r}: one of {', '.join(SECOND_EXPERTS)}")
        if second_expert != "always" and top_k != 2:
            raise ValueError(f"second_expert={second_expert!r} needs top_k 2, not {top_k}")
        self.top_k, self.noise = top_k, noise
        self.second_expert, self.second_by_share = second_expert, second_by_share

    def inputs(self, x: Tensor, training: bool) -> Tensor:
        """Return the router's input (M, D) in float32 for hidden states `x` (M, D)."""
        return jittered(x.float()) if training and self.noise == "jitter" else x.float()

    def __call__(self, logits: Tensor, training: bool) -> RoutingChoice:
        """Choose experts by `logits` (N, E) float32."""
        log_partition = logits.logsumexp(-1, keepdim=True)
        probabilities = (logits - log_partition).exp()  # cheaper than a separate softmax
        experts = self._explore(logits.detach()) if training else best(logits, self.top_k)
        weights = probabilities.gather(-1, experts)
        valid = None
        if training and self.second_expert == "random":
            valid = self._draw_valid(weights.detach())
        return RoutingChoice(experts, weights, probabilities, log_partition, valid)

    def __repr__(self) -> str:
        return f"noise={self.noise}, second_expert={self.second_expert}"

    def _explore(self, logits: Tensor) -> Tensor:
        scores = logits + gumbel_like(logits) if self.noise == "gumbel" else logits
        if self.second_expert != "sampled":
            return best(scores, self.top_k)
        first = best(scores, 1)
        others = (logits + gumbel_like(logits)).scatter_(-1, first, float("-inf"))
        return torch.cat([first, best(others, 1)], dim=-1)

    def _draw_valid(self, weights: Tensor) -> Tensor:
        second = weights[:, 1]
        if self.second_by_share:
            second = second / weights.sum(-1)
        valid = torch.rand_like(second) < 2.0 * second
        return torch.stack([torch.ones_like(valid), valid], dim=-1)


def best(scores: Tensor, k: int) -> Tensor:
    """Return the indices (N, k) int64 of the `k` highest `scores` (N, E) per row, highest first.

    For `k` up to 2, ties go to the lower index on a CPU, where `max` is several times faster than
    `topk`.
    """
    scores = scores.detach()
    if k > 2:
        return scores.topk(k, dim=-1).indices
    first = scores.max(dim=-1, keepdim=True).indices
    if k == 1:
        return first
    second = scores.scatter(-1, first, float("-inf")).max(dim=-1, keepdim=True).indices
    return torch.cat([first, second], dim=-1)


def gumbel_like(logits: Tensor) -> Tensor:
    """Draw standard Gumbel noise: minus the logarithm of exponential noise."""
    return torch.empty_like(logits).exponential_().log_().neg_()


def jittered(x: Tensor) -> Tensor:
    """Multiply each element of `x` by U(0.99, 1.01) (Switch, arXiv:2101.03961)."""
    return x * torch.empty_like(x).uniform_(1.0 - _JITTER, 1.0 + _JITTER)
