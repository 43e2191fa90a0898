"""The Mixture-of-Experts feed-forward layer: router, dispatch and experts combined.

Shapes: B batch, T length, D model, M = B * T, N real tokens, E experts,
K choices per token.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ds_seq.modules.body import BodyOutput, Context, TokenwiseBody
from ds_seq.moe.branch import Losses
from ds_seq.moe.dispatch import run_experts, spread
from ds_seq.moe.experts import Experts
from ds_seq.moe.output import MoeAux
from ds_seq.moe.plan import make_plan, priorities
from ds_seq.moe.router import Router, Routing, expert_capacity, normalized
from ds_seq.moe.stats import routing_stats
from ds_seq.names import DROPS, NORMALIZATIONS

_NO_CONTEXT = Context()


class MoeFeedForward(TokenwiseBody):
    """A feed-forward layer in which each token visits `top_k` of `num_experts` experts.

    The layer is independent of DeepSpeed; `ds_seq.moe.engine` marks the experts for the engine and
    sets the group of ranks over which they are distributed.

    Args:
        router: chooses the experts of each token, see `ds_seq.moe.router`.
        experts: experts held by this rank, a contiguous range of the router's E experts.
        capacity_factor: capacity factor in training, see `expert_capacity`; `None` drops no token.
        eval_capacity_factor: capacity factor in evaluation. Any value but `None` makes the
            translation of a sentence depend on its batch.
        min_capacity: lower bound of the capacity.
        drop: policy by which a full expert drops tokens, see `ds_seq.moe.plan.priorities`.
        normalize_weights: whether the weights of a token are normalized to sum to 1, and whether
            dropped ones count: `none`, `before_dropping` or `after_dropping`.
        branch: dense feed-forward next to the experts, see `ds_seq.moe.branch`; or `None`.
        output_masking: probability of masking an expert's output for a token in training (NLLB,
            arXiv:2207.04672).

    Raises:
        ValueError: unknown policy, or the number of local experts does not divide E.
    """

    def __init__(
        self,
        router: Router,
        experts: Experts,
        *,
        capacity_factor: float | None,
        eval_capacity_factor: float | None,
        min_capacity: int,
        drop: str,
        normalize_weights: str,
        branch: nn.Module | None = None,
        output_masking: float,
    ) -> None:
        super().__init__()
        if drop not in DROPS:
            raise ValueError(f"drop={drop!r}: one of {', '.join(DROPS)}")
        if normalize_weights not in NORMALIZATIONS:
            raise ValueError(
                f"normalize_weights={normalize_weights!r}: one of {', '.join(NORMALIZATIONS)}"
            )
        self.num_experts, self.top_k = router.num_experts, router.top_k
        if self.num_experts % experts.num_local:
            raise ValueError(f"{experts.num_local} local experts do not divide {self.num_experts}")
        self.expert_parallel = self.num_experts // experts.num_local
        self.capacity_factor, self.eval_capacity_factor = capacity_factor, eval_capacity_factor
        self.min_capacity, self.drop = min_capacity, drop
        self.normalize_weights, self.output_masking = normalize_weights, output_masking
        self.group: dist.ProcessGroup | None = None
        # named `gate` because the name is part of parameter names in checkpoints
        self.gate: Router = router
        self.experts, self.branch = experts, branch

    def forward(self, x: Tensor, context: Context = _NO_CONTEXT) -> BodyOutput:
        """Route tokens to experts and transform them.

        Args:
            x: (B, T, D).
            context: token mask, tags and tokens for routers that use them, and whether to return
                losses and statistics. Padding gives zeros (plus the dense branch), takes no
                capacity and counts in no loss.

        Returns:
            The output (B, T, D), and the layer's losses and statistics (`MoeAux`) on request.
        """
        mask, with_aux = context.token_mask, context.with_aux
        flat = x.reshape(-1, x.shape[-1])  # (M, D)
        real = context.token_rows
        if real is None and mask is not None:
            real = mask.reshape(-1).nonzero().squeeze(1)  # (N,)
        if real is not None and real.numel() == flat.shape[0]:
            real = None
        shape = (x.shape[0], x.shape[1])
        tokens = None if context.tokens is None else context.tokens.reshape(-1)  # (M,)
        more_inputs = (tokens,) if self.gate.reads_tokens else ()
        routing: Routing = self.gate(flat, real, shape, context.tag, with_aux, *more_inputs)
        out, kept = self._visit(flat, real, routing)
        out = out.view_as(x)
        losses: Losses = routing.losses
        if self.branch is not None:
            out, more = self.branch(x, out, mask)
            losses = {**losses, **more}
        if not with_aux:
            return BodyOutput(out)
        return BodyOutput(out, MoeAux(losses, routing_stats(routing, kept.sum(), losses)))

    def _visit(self, flat: Tensor, real: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
        """Send the rows `real` of `flat` (M, D) to their experts.

        Returns:
            The output (M, D), and which assignments the experts accepted, bool."""
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        capacity = expert_capacity(
            len(routing.experts), self.num_experts, self.top_k, factor, self.min_capacity
        )
        priority = None
        if capacity is not None:
            priority = priorities(
                routing, self.drop if self.training else _deterministic(self.drop)
            )
        # between ranks, only rows that count are sent; on one GPU, removing them would wait for it
        mark_only = flat.is_cuda and self.expert_parallel == 1
        plan = make_plan(
            routing.experts, self.num_experts, capacity, priority, routing.valid, mark_only
        )
        weights = routing.weights
        if self.normalize_weights == "before_dropping":
            weights = normalized(weights)
        if capacity is not None or routing.valid is not None:
            weights = weights * plan.kept
        if self.normalize_weights == "after_dropping":
            weights = normalized(weights)
        if self.training and self.output_masking > 0.0:
            weights = weights * (torch.rand_like(weights) >= self.output_masking)
        if real is not None:
            plan = spread(plan, real, len(flat))
            weights = weights.new_zeros(len(flat), weights.shape[1]).index_copy(0, real, weights)
        out = run_experts(flat, weights, plan, self.experts, self.expert_group())
        return out, plan.kept

    def expert_group(self) -> dist.ProcessGroup | None:
        """Return the group over which experts are distributed; `None` if this rank holds all."""
        if self.expert_parallel > 1 and self.group is None:
            raise RuntimeError("expert_parallel > 1: call moe.engine.connect_expert_parallel first")
        return self.group

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, expert_parallel={self.expert_parallel}, "
            f"capacity_factor={self.capacity_factor}, drop={self.drop}, "
            f"normalize_weights={self.normalize_weights}"
        )


def _deterministic(drop: str) -> str:
    """Return the policy for evaluation, which must be deterministic."""
    return "position" if drop == "random" else drop
