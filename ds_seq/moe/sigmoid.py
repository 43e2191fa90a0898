"""The sigmoid router of DeepSeek-V3, which balances the load by a bias instead of a loss.

Shapes: M rows, padding included, N real tokens, D model, E experts, K choices
per token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ds_seq.moe.choice import RoutingChoice, best, jittered
from ds_seq.moe.router import Router, Routing, draw_directions, project, rows_of, shares

NOISES = ("none", "jitter")


class SigmoidRouter(Router):
    """Top-K of independent sigmoid scores plus a bias (DeepSeek-V3, arXiv:2412.19437).

    The bias affects only the choice of experts: the weights are the scores without it. It receives
    no gradient; after each update, `ds_seq.moe.balance.BiasBalancer` moves it by one step per
    expert, up if the expert got less than an equal share of the tokens and down if it got more
    (loss-free balancing, arXiv:2408.15664). It is stored as a number of steps, because a step of
    0.001 would be lost next to 0.5 in bfloat16.

    Losses and statistics use the scores, normalized to sum to 1, as probabilities; `router_z` uses
    the logits as a softmax would.

    Args:
        d_model: width of the model, D.
        num_experts: number of experts, E.
        top_k: number of experts per token, K.
        bias_rate: step of the bias.
        noise: `jitter` multiplies the router's input by U(0.99, 1.01) in training; `none`.
        load_balance: scope of the load-balancing loss, see `Router`.

    Raises:
        ValueError: unknown noise; `gumbel` does not apply, as the scores are no distribution.
    """

    expert_tensors = ("weight", "bias_steps")
    bias_steps: Tensor
    """(E,) int64: the bias in units of `bias_rate`."""

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        top_k: int,
        bias_rate: float,
        noise: str,
        load_balance: str,
    ) -> None:
        super().__init__(num_experts, top_k, load_balance)
        if noise not in NOISES:
            raise ValueError(f"noise={noise!r}: one of {', '.join(NOISES)}")
        self.bias_rate, self.noise = bias_rate, noise
        self.weight = nn.Parameter(torch.empty(num_experts, d_model))
        self.register_buffer("bias_steps", torch.zeros(num_experts, dtype=torch.int64))
        self.draw_parameters()

    def draw_parameters(self) -> None:
        """Draw new weights and set the bias to 0."""
        draw_directions(self.weight)
        self.bias_steps.zero_()

    @property
    def bias(self) -> Tensor:
        """The bias (E,) float32, added to the scores for the choice."""
        return self.bias_steps.float() * self.bias_rate

    def forward(
        self,
        x: Tensor,
        real: Tensor | None = None,
        shape: tuple[int, int] | None = None,
        tag: Tensor | None = None,
        with_losses: bool = True,
    ) -> Routing:
        """See `Router`."""
        inputs = x.float()
        if self.training and self.noise == "jitter":
            inputs = jittered(inputs)
        logits = rows_of(project(inputs, self.weight), real)  # (N, E)
        scores = logits.sigmoid()
        experts = best(scores.detach() + self.bias, self.top_k)
        choice = RoutingChoice(
            experts=experts,
            weights=scores.gather(-1, experts),
            probabilities=shares(scores, scores.sum(-1, keepdim=True)),
            log_partition=logits.logsumexp(-1, keepdim=True),
        )
        return self.routing(choice, with_losses)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bias_rate={self.bias_rate}, noise={self.noise}"
