"""The Mixture-of-Experts feed-forward layer: router, dispatch and experts put together.

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
    """A feed-forward layer of which each token uses `top_k` out of `num_experts`.

    It knows nothing of DeepSpeed; `ds_seq.moe.engine` tells the engine which parameters are experts
    and hands this layer the group of ranks they are spread over.

    Args:
        router: who decides which experts a token visits, see `ds_seq.moe.router`.
        experts: those held by this rank, a contiguous run of the E that the router knows.
        capacity_factor: training capacity, see `expert_capacity`; `None` drops no token.
        eval_capacity_factor: the same in evaluation. Anything but `None` makes the translation of
            a sentence depend on its batch.
        min_capacity: lower bound of the capacity.
        drop: who stays where an expert is full, see `ds_seq.moe.plan.priorities`.
        normalize_weights: whether the weights of a token are scaled to sum 1, and whether the
            dropped ones count: `none`, `before_dropping` or `after_dropping`.
        branch: a dense feed-forward beside the experts, see `ds_seq.moe.branch`; `None` for none.
        output_masking: in training, probability with which an expert's output for a token is left
            out (NLLB, arXiv:2207.04672).

    Raises:
        ValueError: an unknown policy, or experts that do not divide those of the router.
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
        self.gate: Router = router
        self.experts, self.branch = experts, branch

    def forward(self, x: Tensor, context: Context = _NO_CONTEXT) -> BodyOutput:
        """Route and transform.

        Args:
            x: (B, T, D).
            context: its token mask: rows that are not real come back as zeros (plus the dense
                branch), take no capacity and count in no loss. Its language tags, for routers that
                ask for them. And whether losses and statistics are wanted.

        Returns:
            (B, T, D), and the layer's losses and statistics (`MoeAux`) if they are wanted.
        """
        mask, with_aux = context.token_mask, context.with_aux
        flat = x.reshape(-1, x.shape[-1])  # (M, D)
        real = None if mask is None else mask.reshape(-1).nonzero().squeeze(1)  # (N,)
        if real is not None and real.numel() == flat.shape[0]:
            real = None
        shape = (x.shape[0], x.shape[1])
        routing: Routing = self.gate(flat, real, shape, context.tag, with_aux)
        out, counts = self._visit(flat, real, routing)
        out = out.view_as(x)
        losses: Losses = routing.losses
        if self.branch is not None:
            out, more = self.branch(x, out, mask)
            losses = {**losses, **more}
        if not with_aux:
            return BodyOutput(out)
        return BodyOutput(out, MoeAux(losses, routing_stats(routing, counts.sum(), losses)))

    def _visit(self, flat: Tensor, real: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
        """Send the rows `real` of `flat` (M, D) to their experts; returns (M, D) and how many
        assignments got a place at each expert, (E,)."""
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        capacity = expert_capacity(
            len(routing.experts), self.num_experts, self.top_k, factor, self.min_capacity
        )
        priority = None
        if capacity is not None:
            priority = priorities(routing, self.drop if self.training else _calm(self.drop))
        plan = make_plan(routing.experts, self.num_experts, capacity, priority, routing.valid)
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
        return out, plan.counts

    def expert_group(self) -> dist.ProcessGroup | None:
        """The group the experts are spread over; `None` when all of them are here."""
        if self.expert_parallel > 1 and self.group is None:
            raise RuntimeError("expert_parallel > 1: call moe.engine.connect_expert_parallel first")
        return self.group

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, expert_parallel={self.expert_parallel}, "
            f"capacity_factor={self.capacity_factor}, drop={self.drop}, "
            f"normalize_weights={self.normalize_weights}"
        )


def _calm(drop: str) -> str:
    """The policy in evaluation, where nothing may be left to chance."""
    return "position" if drop == "random" else drop
