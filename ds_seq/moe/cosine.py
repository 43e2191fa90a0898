"""The cosine router of X-MoE: experts are directions in a small space, and only angles count.

Shapes: M rows, padding included, N real tokens, D model, D_r width of the small
space, E experts.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.moe.choice import SoftmaxChoice
from ds_seq.moe.router import Router, Routing, draw_directions, project, rows_of

_START, _FLOOR = 0.07, 0.01  # of the temperature


class CosineRouter(Router):
    """Softmax of the cosine between a token and each expert over a learned temperature (X-MoE,
    arXiv:2204.09179).

    Tokens are mapped to a space much smaller than the model, and both sides are scaled to length 1
    there. A dot product lets experts pull the hidden states of their tokens towards one point, the
    longer the surer (representation collapse); here length has no effect at all.

    The temperature is `0.01 + exp(t)` with `t` learned: never below the floor, and without a
    point at which its gradient would be cut off and stay so. (A cut-off gradient would also depend
    on how tokens fall to ranks, for each of them would cut off its own part.)

    Args:
        d_model: D.
        num_experts: E.
        choice: how many experts it takes, and how it explores.
        router_dim: D_r; `None`: half of E, at least 16.
        load_balance: see `Router`.
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
        # one row, not a scalar: optimizers and ZeRO cut parameters along their first dimension
        self.log_temperature = nn.Parameter(torch.empty(1))
        self.draw_parameters()

    def draw_parameters(self) -> None:
        """Experts as far apart as the small space lets them be; temperature 0.07."""
        draw_directions(self.projection)
        nn.init.orthogonal_(self.embeddings)
        nn.init.constant_(self.log_temperature, math.log(_START - _FLOOR))

    @property
    def temperature(self) -> Tensor:
        """(1,) float32."""
        return _FLOOR + self.log_temperature.float().exp()

    def scores(self, x: Tensor) -> Tensor:
        """(M, E) float32 cosines of the rows of `x` (M, D), in [-1, 1]."""
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
