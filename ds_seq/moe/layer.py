"""The Mixture-of-Experts feed-forward layer: gate, dispatch and experts put together.

Legend: ``B`` batch, ``T`` length, ``D`` model, ``M`` = B * T, ``N`` real tokens, ``E`` experts.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ds_seq.moe.dispatch import make_plan, run_experts
from ds_seq.moe.experts import Experts
from ds_seq.moe.gate import TopKGate, expert_capacity, normalized
from ds_seq.moe.output import MoeAux
from ds_seq.moe.stats import routing_stats


class MoeFeedForward(nn.Module):
    """A feed-forward layer of which each token uses ``top_k`` out of ``num_experts``.

    It knows nothing of DeepSpeed; `ds_seq.moe.engine` tells the engine which parameters are experts
    and hands this layer the group of ranks they are spread over.

    Args:
        d_model: D.
        ffn_dim: hidden width of each expert.
        num_experts: E, over all ranks.
        top_k: experts per token.
        activation: of the experts: ``relu``, ``gelu`` or ``swiglu``.
        dropout: on the experts' hidden activations.
        expert_parallel: ranks over which the experts are spread; divides E.
        expert_parallel_rank: which of them this is; it holds a contiguous run of experts.
        capacity_factor: training capacity, see `expert_capacity`; ``None`` drops no token.
        eval_capacity_factor: the same in evaluation. Anything but ``None`` makes the translation of
            a sentence depend on its batch.
        min_capacity: lower bound of the capacity.
        noise: see `TopKGate`.
        normalize_weights: scale the weights of a token to sum 1, after dropping.
        residual: a dense feed-forward that every token visits as well, mixed in by a learned
            two-way softmax (PR-MoE, arXiv:2201.05596); ``None`` for none.
        layer_index: position among the MoE layers; part of the experts' seed.
        seed: of the model.

    Raises:
        ValueError: if ``expert_parallel`` does not divide ``num_experts``.
    """

    def __init__(
        self,
        *,
        d_model: int,
        ffn_dim: int,
        num_experts: int,
        top_k: int = 1,
        activation: str = "relu",
        dropout: float = 0.0,
        expert_parallel: int = 1,
        expert_parallel_rank: int = 0,
        capacity_factor: float | None = None,
        eval_capacity_factor: float | None = None,
        min_capacity: int = 4,
        noise: str = "none",
        normalize_weights: bool = False,
        residual: nn.Module | None = None,
        layer_index: int = 0,
        seed: int = 1,
    ) -> None:
        super().__init__()
        if num_experts % expert_parallel:
            raise ValueError(
                f"expert_parallel={expert_parallel} must divide num_experts={num_experts}"
            )
        self.num_experts, self.expert_parallel = num_experts, expert_parallel
        self.capacity_factor, self.eval_capacity_factor = capacity_factor, eval_capacity_factor
        self.min_capacity = min_capacity
        self.group: dist.ProcessGroup | None = None
        self.gate = TopKGate(d_model, num_experts, top_k, noise, normalize_weights)
        num_local = num_experts // expert_parallel
        self.experts = Experts(
            d_model,
            ffn_dim,
            num_local,
            expert_parallel_rank * num_local,
            activation,
            dropout,
            seed * 1000 + layer_index,
        )
        self.residual = residual
        self.mix = None if residual is None else nn.Linear(d_model, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, MoeAux]:
        """Route and transform.

        Args:
            x: (B, T, D).
            mask: (B, T) bool, True = real token; ``None``: all are. Other rows come back as zeros
                (plus the residual branch), take no capacity and count in no loss.

        Returns:
            (B, T, D) and the layer's losses and statistics.
        """
        flat = x.reshape(-1, x.shape[-1])  # (M, D)
        real = None if mask is None else mask.reshape(-1).nonzero().squeeze(1)  # (N,)
        if real is not None and real.numel() == flat.shape[0]:
            real = None
        routing = self.gate(flat, real)
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        num_tokens, top_k = routing.experts.shape
        capacity = expert_capacity(num_tokens, self.num_experts, top_k, factor, self.min_capacity)
        plan = make_plan(routing.experts, self.num_experts, capacity)
        weights = routing.weights if capacity is None else routing.weights * plan.kept
        if self.gate.normalize_weights:
            weights = normalized(weights)
        tokens = flat if real is None else flat.index_select(0, real)  # (N, D)
        out = run_experts(tokens, weights, plan, self.experts, self.expert_group())
        if real is not None:
            out = torch.zeros_like(flat).index_copy(0, real, out)  # (M, D)
        out = out.view_as(x)
        if self.residual is not None and self.mix is not None:
            dense, _ = self.residual(x, mask)
            share = self.mix(x).float().softmax(-1).to(x.dtype)  # (B, T, 2)
            out = out * share[..., :1] + dense * share[..., 1:]
        stats = routing_stats(routing.probabilities, routing.experts, plan.counts.sum())
        return out, MoeAux(routing.losses, stats)

    def expert_group(self) -> dist.ProcessGroup | None:
        """The group the experts are spread over; ``None`` when all of them are here."""
        if self.expert_parallel > 1 and self.group is None:
            raise RuntimeError("expert_parallel > 1: call moe.engine.connect_expert_parallel first")
        return self.group

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, expert_parallel={self.expert_parallel}, "
            f"capacity_factor={self.capacity_factor}"
        )
