"""Expert choice: every expert picks an equal share of the tokens of each sentence.

Shapes: B sentences, T length, M = B * T rows, padding included, N real tokens,
D model, E experts, K choices per token, K' largest number of experts that picked one token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ds_seq.moe.choice import best
from ds_seq.moe.losses import router_z_loss
from ds_seq.moe.router import Router, Routing, draw_directions, project, rows_of
from ds_seq.names import ROUTER_Z


class ExpertChoiceRouter(Router):
    """Each expert takes its highest-scoring tokens (arXiv:2202.09368).

    The load is perfectly balanced, and a token may visit no, one or several experts.

    In the paper, experts pick from the whole batch, so the translation of a sentence depends on
    the rest of the batch and on padding. Here, they pick within each sentence:
    `ceil(K * length / E * capacity_factor)` tokens, at least one and at most all. This needs the
    complete sentence, so the router is for encoders only.

    There is no loss `load_balance`, because the load is even by construction.

    Args:
        d_model: width of the model, D.
        num_experts: number of experts, E.
        top_k: average number of experts per token if `capacity_factor` is 1, K.
        capacity_factor: multiplier of the number of tokens per expert, in training and evaluation.
    """

    expert_tensors = ("weight",)

    def __init__(self, d_model: int, num_experts: int, top_k: int, capacity_factor: float) -> None:
        super().__init__(num_experts, top_k, "rank")  # irrelevant without the loss
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
        """See `Router`; the result has K' choices per token, some of which are not `valid`."""
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
        """Return whether each expert takes each token, (N, E) bool.

        Ties go to the earlier token.
        """
        num_experts, (batch, length) = self.num_experts, shape
        grid = probabilities  # (M, E)
        lengths = torch.full((batch,), length, device=grid.device)
        if real is not None:
            rows = grid.new_full((batch * length, num_experts), -1.0)  # padding ranks last
            grid = rows.index_copy_(0, real, probabilities)
            lengths = (grid[:, 0] >= 0.0).view(batch, length).sum(1)
        grid = grid.view(batch, length, num_experts)
        # float64 and this order of operations are exact whenever the plain quotient is
        share = lengths.double() * self.top_k / num_experts * self.capacity_factor
        quota = share.ceil()  # (B,); may exceed the length
        order = grid.argsort(dim=1, descending=True, stable=True)  # (B, T, E)
        places = torch.arange(length, device=grid.device).view(1, -1, 1).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, places)
        picked = (rank < quota.view(-1, 1, 1)).view(batch * length, num_experts)
        return rows_of(picked, real)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, capacity_factor={self.capacity_factor}"
