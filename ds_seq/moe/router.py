"""Who decides which experts a token visits: what all routers share, and the softmax router.

The others are `ds_seq.moe.cosine`, `sigmoid`, `expert_choice` and `language`.

Shapes: B sentences, T length, M = B * T rows, padding included, N real tokens,
D model, E experts, K choices per token, C capacity: the most assignments one expert
accepts in one forward.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.distributed import sum_over_ranks, world_size
from ds_seq.modules.linear import linear
from ds_seq.moe.choice import RoutingChoice, SoftmaxChoice
from ds_seq.moe.losses import (
    expert_counts,
    load_balance_loss,
    router_z_loss,
)
from ds_seq.names import LOAD_BALANCE, LOAD_BALANCES, ROUTER_Z

_FEW_ROWS = 64


class Routing(NamedTuple):
    """The router's answer for N tokens."""

    experts: Tensor
    """(N, K) int64: chosen experts, the preferred one first."""
    weights: Tensor
    """(N, K) float32: what the outputs of those experts are multiplied with."""
    probabilities: Tensor
    """(N, E) float32: the whole distribution, for losses and statistics."""
    losses: dict[str, Tensor]
    """Scalar float32 by name, see `ds_seq.moe.losses`; the same names in every forward that wants
    them."""
    valid: Tensor | None = None
    """(N, K) bool: False where a token has no such choice; that one never travels and weighs
    nothing. `None`: all are."""


class Router(nn.Module, ABC):
    """Base of all routers: `router(x, real, shape, tag) -> Routing`.

    Logits, probabilities and weights are float32 whatever the precision of the model: with
    half-precision logits near-ties flip between the forward and a recomputed forward.

    Args:
        num_experts: E.
        top_k: K, the experts a token visits.
        load_balance: the tokens over which the loss `load_balance` wants balance. `rank`: those
            of this forward. `global` (arXiv:2501.11873), in training on several ranks: those of
            this forward on all ranks. There the loss of a rank is `E * sum_e P_e * f_e` with
            `P_e` the mean probability of expert e over the tokens of the rank, and `f_e` the
            share of e in the choices of all ranks: one all-reduce of E counts, through which no
            gradient flows. The mean over ranks, weighted by their tokens, is the loss of the joint
            batch. Every rank must then run the same number of forwards, recomputed ones included.

    Raises:
        ValueError: K or the policy is out of range.
    """

    expert_tensors: ClassVar[tuple[str, ...]]
    """Names of its parameters and buffers with a row for each expert; pruning drops rows."""

    def __init__(self, num_experts: int, top_k: int, load_balance: str) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k={top_k} must lie between 1 and num_experts={num_experts}")
        if load_balance not in LOAD_BALANCES:
            raise ValueError(f"load_balance={load_balance!r}: one of {', '.join(LOAD_BALANCES)}")
        self.num_experts, self.top_k, self.load_balance = num_experts, top_k, load_balance

    @abstractmethod
    def draw_parameters(self) -> None:
        """Draw all parameters anew."""

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
            real: (N,) int64 rows to route, in rising order; `None` for all. Selecting among the
                (M, E) logits is cheaper than selecting among the rows of `x`.
            shape: (B, T), for routers that look at sentences; `None`: one sentence.
            tag: (B, D) embedding of the language tag of each sentence, or `None`.
            with_losses: False leaves them out, where nobody would look at them.
        """

    def routing(self, choice: RoutingChoice, with_losses: bool) -> Routing:
        """An answer with the losses of a choice that tokens made."""
        losses = {}
        if with_losses:
            losses[LOAD_BALANCE] = self._load_balance(choice)
            losses[ROUTER_Z] = router_z_loss(choice.log_partition)
        return Routing(choice.experts, choice.weights, choice.probabilities, losses, choice.valid)

    def _load_balance(self, choice: RoutingChoice) -> Tensor:
        """First choices count; beyond two experts a token, all of them do (as in DeepSpeed)."""
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
    """Softmax over expert logits, best K (Shazeer et al. 2017; K=1: Switch, arXiv:2101.03961).

    Args:
        d_model: D.
        num_experts: E.
        choice: how many experts it takes, and how it explores.
        load_balance: see `Router`.
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
    """Draw a direction of the model (D) for each expert: `weight` (E, D).

    Small enough that no expert starts as everybody's favorite.
    """
    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)


def project(x: Tensor, weight: Tensor) -> Tensor:
    """`x` (M, I) float32 times the transposed `weight` (O, I), in float32.

    For the few rows of a decoding step calling the faster kernel takes longer than the product.
    """
    product = linear if x.shape[0] > _FEW_ROWS else F.linear
    return product(x, weight.float())


def rows_of(values: Tensor, real: Tensor | None) -> Tensor:
    """The rows `real` (N,) of `values` (M, ...); `None`: all of them."""
    return values if real is None else values.index_select(0, real)


def expert_capacity(
    num_tokens: int, num_experts: int, top_k: int, factor: float | None, minimum: int
) -> int | None:
    """DeepSpeed's rule, over real tokens only: `max(ceil(K * N / E * factor), minimum)`.

    Returns:
        C, never more than N; `None` (dropless) when `factor` is `None`.
    """
    if factor is None:
        return None
    return min(max(math.ceil(top_k * num_tokens / num_experts * factor), minimum), num_tokens)


def normalized(weights: Tensor) -> Tensor:
    """Scale the last dimension to sum 1; rows of zeros (all choices dropped) stay zeros.

    A single weight becomes 1 with the gradient of `p / stop_gradient(p)`: its own would be 0, and
    the router would learn nothing from the loss of the translation.
    """
    total = weights.detach() if weights.shape[-1] == 1 else weights.sum(-1, keepdim=True)
    return weights / total.clamp(min=torch.finfo(weights.dtype).tiny)
