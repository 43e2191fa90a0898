"""A router: fixed random directions, with nothing to learn (as Roller et al., 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from ds_seq.moe.router import Router, Routing, rows_of


class HashRouter(Router):
    """The K experts whose directions are nearest to a token.

    Args:
        d_model: D.
        num_experts: E.
        top_k: experts a token visits.
        salt: decides the directions.
    """

    expert_tensors = ()

    def __init__(self, d_model: int, num_experts: int, top_k: int, salt: int = 0) -> None:
        super().__init__(num_experts, top_k, "rank")
        generator = torch.Generator().manual_seed(salt)
        self._directions = torch.randn(num_experts, d_model, generator=generator)

    def draw_parameters(self) -> None:
        """There are none."""

    def forward(
        self,
        x: Tensor,
        real: Tensor | None = None,
        shape: tuple[int, int] | None = None,
        tag: Tensor | None = None,
        with_losses: bool = True,
    ) -> Routing:
        """See `Router`."""
        directions = self._directions.to(x.device)
        probabilities = rows_of(x.detach().float() @ directions.t(), real).softmax(-1)  # (N, E)
        experts = probabilities.topk(self.top_k).indices
        weights = torch.full(experts.shape, 1.0 / self.top_k, device=x.device)
        return Routing(experts, weights, probabilities, {})
