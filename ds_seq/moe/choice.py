"""Which experts a softmax over logits chooses, and how chance helps it to explore in training.

Shapes: N tokens, E experts, K choices per token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ds_seq.names import NOISES, SECOND_EXPERTS

_JITTER = 0.01


class RoutingChoice(NamedTuple):
    """The experts of N tokens and the distribution they come from."""

    experts: Tensor
    """(N, K) int64, the preferred one first."""
    weights: Tensor
    """(N, K) float32: their probabilities."""
    probabilities: Tensor
    """(N, E) float32."""
    log_partition: Tensor
    """(N, 1) float32: log of the sum of exp(logit)."""
    valid: Tensor | None = None
    """(N, K) bool: False for a choice that was taken back; `None`: none was."""


class SoftmaxChoice:
    """The best K of a softmax.

    In training, chance may take part:

    - noise `jitter` multiplies the router's input by U(0.99, 1.01); `gumbel` adds Gumbel noise
      to the logits, so that the choice is a sample of the softmax, and weights are still those
      without noise.
    - the second of two experts is the next best (`always`); or the best after Gumbel noise on the
      logits of all but the first (`sampled`); or the next best, kept with probability
      `min(1, 2 g)` (`random`), which GShard (arXiv:2006.16668) does to save the expert's time
      where it hardly counts.

    Args:
        top_k: K.
        noise: one of `NOISES`.
        second_expert: one of `SECOND_EXPERTS`; other than `always` only with K = 2.
        second_by_share: what g is: the second probability over the sum of the two, as in GShard,
            which scales the weights to sum 1 before tokens are dropped; or the plain probability.

    Raises:
        ValueError: an unknown policy, or a second expert where there are not two.
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
        """(M, D) float32: what the router is to look at in place of `x` (M, D)."""
        return jittered(x.float()) if training and self.noise == "jitter" else x.float()

    def __call__(self, logits: Tensor, training: bool) -> RoutingChoice:
        """Choose by `logits` (N, E) float32."""
        log_partition = logits.logsumexp(-1, keepdim=True)
        probabilities = (logits - log_partition).exp()  # cheaper than a softmax beside the former
        experts = self._explore(logits.detach()) if training else best(logits, self.top_k)
        weights = probabilities.gather(-1, experts)
        valid = None
        if training and self.second_expert == "random":
            valid = self._second_kept(weights.detach())
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

    def _second_kept(self, weights: Tensor) -> Tensor:
        second = weights[:, 1]
        if self.second_by_share:
            second = second / weights.sum(-1)
        kept = torch.rand_like(second) < 2.0 * second
        return torch.stack([torch.ones_like(kept), kept], dim=-1)


def best(scores: Tensor, k: int) -> Tensor:
    """(N, k) int64: the `k` highest of each row of `scores` (N, E), the highest first.

    Up to two, equal scores go to the lower index: on a CPU, and there `max` is several times
    faster than `topk`.
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
    """Standard Gumbel variates: the logarithm of an exponential one is minus such a variate."""
    return torch.empty_like(logits).exponential_().log_().neg_()


def jittered(x: Tensor) -> Tensor:
    """`x` times U(0.99, 1.01), element by element (Switch, arXiv:2101.03961)."""
    return x * torch.empty_like(x).uniform_(1.0 - _JITTER, 1.0 + _JITTER)
