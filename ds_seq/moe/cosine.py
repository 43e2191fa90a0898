"""The cosine router of X-MoE: experts are directions in a low-dimensional space.

Shapes: M rows, padding included, N real tokens, D model, D_r router
dimension, E experts.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.moe.choice import SoftmaxChoice
from ds_seq.moe.router import Router, Routing, draw_directions, project, rows_of

_START, _FLOOR = 0.07, 0.01  # initial and lowest temperature


class CosineRouter(Router):
    """Softmax over cosine similarities divided by a learned temperature (X-MoE, arXiv:2204.09179).

    Tokens are projected to a space much smaller than the model, and tokens and experts are
    normalized to length 1 there. With a plain dot product, experts pull the hidden states of their
    tokens towards one point (representation collapse); here, the length has no effect.

    The temperature is `0.01 + exp(t)` with a learned `t`. This bounds it from below without
    clipping, which would stop its gradient for good. (A clipped gradient would also depend on how
    tokens are distributed over ranks, because each rank would clip its own part.)

    Args:
        d_model: width of the model, D.
        num_experts: number of experts, E.
        choice: how many experts are chosen, and how training explores.
        router_dim: router dimension, D_r; `None` takes E / 2, but at least 16.
        load_balance: scope of the load-balancing loss, see `Router`.
    """

    expert_tensors = ("embeddings",)

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        choice: SoftmaxChoice,
        router_dim: int | None,
        load_balance: str,
    ) -> None:
        super().__init__(num_experts, choice.top_k, load_balance)
        self.choice = choice
        router_dim = router_dim or max(num_experts // 2, 16)
        self.projection = nn.Parameter(torch.empty(router_dim, d_model))
        self.embeddings = nn.Parameter(torch.empty(num_experts, router_dim))
        # one row, not a scalar: optimizers and ZeRO partition parameters along the first dimension
        self.log_temperature = nn.Parameter(torch.empty(1))
        self.draw_parameters()

    def draw_parameters(self) -> None:
        """Draw orthogonal experts and set the temperature to 0.07."""
        draw_directions(self.projection)
        nn.init.orthogonal_(self.embeddings)
        nn.init.constant_(self.log_temperature, math.log(_START - _FLOOR))

    @property
    def temperature(self) -> Tensor:
        """(1,) float32."""
        return _FLOOR + self.log_temperature.float().exp()

    def scores(self, x: Tensor) -> Tensor:
        """Return the cosine similarities (M, E) float32 of `x` (M, D) with the experts."""
        inputs = self.choice.inputs(x, self.training)
        tokens = F.normalize(project(inputs, self.projection), dim=-1)  # (M, D_r)
        experts = F.normalize(self.embeddings.float(), dim=-1)  # (E, D_r)
        return project(tokens, experts)

    def forward(
        self,
        x: Tensor,
        real: Tensor | None = None,
        shape: tuple[int, int] | None = None,
        tag: Tensor | None = None,
        with_losses: bool = True,
    ) -> Routing:
        """See `Router`."""
        logits = rows_of(self.scores(x), real) / self.temperature  # (N, E)
        return self.routing(self.choice(logits, self.training), with_losses)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, router_dim={self.projection.shape[0]}, {self.choice}"
