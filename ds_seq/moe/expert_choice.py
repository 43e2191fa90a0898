"""Expert choice: experts pick tokens, each its even share of every sentence.

Shapes: B sentences, T length, M = B * T rows, padding included, N real tokens,
D model, E experts, K choices per token, K' the most experts that picked one token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ds_seq.moe.choice import best
from ds_seq.moe.losses import router_z_loss
from ds_seq.moe.router import Router, Routing, draw_directions, project, rows_of
from ds_seq.names import ROUTER_Z


class ExpertChoiceRouter(Router):
    """Each expert takes the tokens that want it most (arXiv:2202.09368): perfect balance, and
    tokens that visit none, one or several experts.

    The paper lets experts pick from the whole batch. Then the translation of a sentence depends on
    what else is in the batch, and on padding. Here they pick within each sentence:
    `ceil(K * length / E * capacity_factor)` tokens, at least one, at most all. A sentence must be
    there as a whole, so this router is for encoders only.

    There is no loss `load_balance`: the load is even by construction.

    Args:
        d_model: D.
        num_experts: E.
        top_k: K, the experts that a token visits on average if `capacity_factor` is 1.
        capacity_factor: scales how many tokens an expert takes, in training and evaluation alike.
    """

    expert_tensors = ("weight",)

    def __init__(self, d_model: int, num_experts: int, top_k: int, capacity_factor: float) -> None:
        super().__init__(num_experts, top_k, "rank")  # it has no loss that this would matter to
        self.capacity_factor = capacity_factor
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
        """See `Router`; the answer has K' choices, of which each token has its `valid` ones."""
        num_rows = x.shape[0]
        logits = rows_of(project(x.float(), self.weight), real)  # (N, E)
        log_partition = logits.logsumexp(-1, keepdim=True)
        probabilities = (logits - log_partition).exp()
        picked = self._pick(probabilities.detach(), real, shape or (1, num_rows))  # (N, E)
        num_choices = int(picked.sum(-1).max().clamp(min=1)) if len(picked) else 1  # K'
        experts = best(probabilities.detach().masked_fill(~picked, -1.0), num_choices)
        valid = picked.gather(-1, experts)
        weights = probabilities.gather(-1, experts) * valid
        losses = {ROUTER_Z: router_z_loss(log_partition)} if with_losses else {}
        return Routing(experts, weights, probabilities, losses, valid)

    def _pick(self, probabilities: Tensor, real: Tensor | None, shape: tuple[int, int]) -> Tensor:
        """(N, E) bool: whether the expert takes the token; equal scores go to the earlier one."""
        num_experts, (batch, length) = self.num_experts, shape
        grid = probabilities  # (M, E)
        lengths = torch.full((batch,), length, device=grid.device)
        if real is not None:
            rows = grid.new_full((batch * length, num_experts), -1.0)  # padding: behind all others
            grid = rows.index_copy_(0, real, probabilities)
            lengths = (grid[:, 0] >= 0.0).view(batch, length).sum(1)
        grid = grid.view(batch, length, num_experts)
        # in float64 and in this order it is exact wherever the plain quotient is
        share = lengths.double() * self.top_k / num_experts * self.capacity_factor
        quota = share.ceil()  # (B,); more than there are takes all
        order = grid.argsort(dim=1, descending=True, stable=True)  # (B, T, E)
        places = torch.arange(length, device=grid.device).view(1, -1, 1).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, places)
        picked = (rank < quota.view(-1, 1, 1)).view(batch * length, num_experts)
        return rows_of(picked, real)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, capacity_factor={self.capacity_factor}"
