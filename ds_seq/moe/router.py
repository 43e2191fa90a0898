"""Routers choose the experts of each token: the base class and the softmax router.

The other routers are `ds_seq.moe.cosine`, `sigmoid`, `expert_choice`, `language` and `hash`.

Shapes: B sentences, T length, M = B * T rows, padding included, N real tokens,
D model, E experts, K choices per token, C capacity: largest number of assignments that
one expert accepts in one forward pass.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.distributed import full_fp32, sum_over_ranks, world_size
from ds_seq.modules.linear import linear
from ds_seq.moe.choice import RoutingChoice, SoftmaxChoice
from ds_seq.moe.losses import (
    expert_counts,
    load_balance_loss,
    router_z_loss,
)
from ds_seq.names import LOAD_BALANCE, LOAD_BALANCES, ROUTER_Z

_FEW_ROWS = 64
_SATURATED = 1e-20  # leaves room for a loss scale of 2^32, and more, times the inverse


class Routing(NamedTuple):
    """A router's result for N tokens."""

    experts: Tensor
    """(N, K) int64: chosen experts, the most probable one first."""
    weights: Tensor
    """(N, K) float32: factors of the outputs of those experts."""
    probabilities: Tensor
    """(N, E) float32: the whole distribution, for losses and statistics."""
    losses: dict[str, Tensor]
    """Scalar float32 losses by name, see `ds_seq.moe.losses`; the same names in every call that
    computes losses."""
    valid: Tensor | None = None
    """(N, K) bool: False if a token has no such choice; it is not dispatched and has no weight.
    `None` if all choices are valid."""


class Router(nn.Module, ABC):
    """Base of all routers: `router(x, real, shape, tag) -> Routing`.

    Logits, probabilities and weights are float32 in models of any precision: with half-precision
    logits, near-ties may flip between the forward pass and its recomputation.

    Args:
        num_experts: number of experts, E.
        top_k: number of experts per token, K.
        load_balance: scope of the loss `load_balance`. `rank`: the tokens of this forward pass.
            `global` (arXiv:2501.11873): in training, the tokens of this forward pass on all ranks.
            The loss of a rank is then `E * sum_e P_e * f_e`, where `P_e` is the mean probability
            of expert e over the rank's tokens, and `f_e` the share of e in the choices of all
            ranks; this takes one all-reduce of E counts, without a gradient. The mean over ranks,
            weighted by their tokens, is the loss of the joint batch. Every rank must run the same
            number of forward passes, including recomputed ones.

    Raises:
        ValueError: `top_k` is out of range, or `load_balance` is unknown.
    """

    expert_tensors: ClassVar[tuple[str, ...]]
    """Names of the parameters and buffers with one row per expert; pruning removes rows."""
    reads_tokens: ClassVar[bool] = False
    """Whether `forward` also takes the numbers of the tokens (M,) int64, last."""

    def __init__(self, num_experts: int, top_k: int, load_balance: str) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k={top_k} must lie between 1 and num_experts={num_experts}")
        if load_balance not in LOAD_BALANCES:
            raise ValueError(f"load_balance={load_balance!r}: one of {', '.join(LOAD_BALANCES)}")
        self.num_experts, self.top_k, self.load_balance = num_experts, top_k, load_balance

    @abstractmethod
    def draw_parameters(self) -> None:
        """Draw new values for all parameters."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        real: Tensor | None = None,
        shape: tuple[int, int] | None = None,
        tag: Tensor | None = None,
        with_losses: bool = True,
    ) -> Routing:
        """Route the rows `real` of `x`.

        Args:
            x: (M, D) hidden states, padding included.
            real: (N,) int64 rows to route, in ascending order; `None` for all. Selecting rows of
                the (M, E) logits is cheaper than selecting rows of `x`.
            shape: (B, T), for routers that need sentences; `None` for one sentence.
            tag: (B, D) embedding of the language tag of each sentence, or `None`.
            with_losses: whether to compute losses.
        """

    def routing(self, choice: RoutingChoice, with_losses: bool) -> Routing:
        """Return the result for a choice, with its losses if `with_losses`."""
        losses = {}
        if with_losses:
            losses[LOAD_BALANCE] = self._load_balance(choice)
            losses[ROUTER_Z] = router_z_loss(choice.log_partition)
        return Routing(choice.experts, choice.weights, choice.probabilities, losses, choice.valid)

    def _load_balance(self, choice: RoutingChoice) -> Tensor:
        """Return the loss over first choices, or over all choices if K > 2 (as in DeepSpeed)."""
        chosen = choice.experts if self.top_k > 2 else choice.experts[:, 0]
        counts = expert_counts(chosen, self.num_experts)  # (E,)
        num_choices: int | Tensor = chosen.numel()
        if self.load_balance == "global" and self.training and world_size() > 1:
            counts = sum_over_ranks(counts.float())
            num_choices = counts.sum().clamp(min=1.0)
        return load_balance_loss(choice.probabilities, counts, num_choices)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}"


class SoftmaxRouter(Router):
    """Top-K softmax over expert logits (Shazeer et al., 2017; K = 1: Switch, arXiv:2101.03961).

    Args:
        d_model: width of the model, D.
        num_experts: number of experts, E.
        choice: how many experts are chosen, and how training explores.
        load_balance: scope of the load-balancing loss, see `Router`.
    """

    expert_tensors = ("weight",)

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        choice: SoftmaxChoice,
        load_balance: str,
    ) -> None:
        super().__init__(num_experts, choice.top_k, load_balance)
        self.choice = choice
        self.weight = nn.Parameter(torch.empty(num_experts, d_model))
        self.draw_parameters()

    def draw_parameters(self) -> None:
        """See `Router`."""
        draw_directions(self.weight)

    def forward(
        self,
        x: Tensor,
        real: Tensor | None = None,
        shape: tuple[int, int] | None = None,
        tag: Tensor | None = None,
        with_losses: bool = True,
    ) -> Routing:
        """See `Router`."""
        inputs = self.choice.inputs(x, self.training)
        logits = rows_of(project(inputs, self.weight), real)  # (N, E)
        return self.routing(self.choice(logits, self.training), with_losses)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.choice}"


def draw_directions(weight: Tensor) -> None:
    """Draw a random direction for each expert, `weight` (E, D).

    The scale is small enough that no expert dominates at the start.
    """
    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)


def project(x: Tensor, weight: Tensor) -> Tensor:
    """Return `x @ weight.T` in float32 for `x` (M, I) float32 and `weight` (O, I).

    In full float32 on a GPU, too, where TF32 would flip choices between experts that are nearly
    equal. For the few rows of a decoding step, calling the faster kernel of a CPU takes longer than
    the product.
    """
    if x.is_cuda:
        with full_fp32():
            return F.linear(x, weight.float())
    product = linear if x.shape[0] > _FEW_ROWS else F.linear
    return product(x, weight.float())


def rows_of(values: Tensor, real: Tensor | None) -> Tensor:
    """Return the rows `real` (N,) of `values` (M, ...); `None` for all rows."""
    return values if real is None else values.index_select(0, real)


def expert_capacity(
    num_tokens: int, num_experts: int, top_k: int, factor: float | None, minimum: int
) -> int | None:
    """Return `max(ceil(K * N / E * factor), minimum)`: DeepSpeed's rule, for real tokens only.

    Returns:
        C, at most N; `None` (dropless) if `factor` is `None`.
    """
    if factor is None:
        return None
    return min(max(math.ceil(top_k * num_tokens / num_experts * factor), minimum), num_tokens)


def normalized(weights: Tensor) -> Tensor:
    """Scale the last dimension to sum to 1; rows of zeros (all choices dropped) stay zeros.

    A single weight becomes 1 with the gradient of `p / stop_gradient(p)`: the true gradient is 0,
    and the router would learn nothing from the translation loss.
    """
    total = weights.detach() if weights.shape[-1] == 1 else weights.sum(-1, keepdim=True)
    return shares(weights, total)


def shares(parts: Tensor, total: Tensor) -> Tensor:
    """Return `parts / total`; rows (N, ...) whose total is (almost) 0 get no gradient.

    A probability underflows at a gap of 87 between logits. Before that, 1 / total, which is a
    factor of the gradient, times a gradient from above exceeds float32, and infinity times the
    probability is NaN. The gradient of such a saturated row vanishes.
    """
    share = parts / total.clamp(min=torch.finfo(parts.dtype).tiny)
    return torch.where(total > _SATURATED, share, share.detach())
