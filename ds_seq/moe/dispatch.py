"""Dispatch: move tokens from the batch to their experts and back.

Assignments (token, choice) are sorted by expert, so that each expert reads one contiguous block of
rows, on this rank or, under expert parallelism, after a ragged all-to-all. Memory is linear in the
number of routed rows: there is no (tokens x experts x capacity) tensor.

Shapes: M rows of the batch, N real tokens, K choices per token, R routed rows
(N * K minus the dropped ones), D model, E experts, P expert-parallel ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ds_seq.moe.experts import Experts
from ds_seq.moe.plan import DispatchPlan


def spread(plan: DispatchPlan, real: Tensor, num_rows: int) -> DispatchPlan:
    """Return the same plan with tokens indexed by their rows in the padded batch.

    Experts then gather directly from the batch, and their outputs are summed directly into it: the
    real tokens are not copied in either direction.

    Args:
        plan: plan over N real tokens.
        real: (N,) int64, row of each real token in the batch.
        num_rows: number of rows of the batch, M.
    """
    top_k = plan.slot.shape[1]
    token = real.index_select(0, plan.token)
    choice = plan.assignment - plan.token * top_k
    slot = plan.slot.new_zeros(num_rows, top_k).index_copy_(0, real, plan.slot)
    kept = plan.kept.new_zeros(num_rows, top_k).index_copy_(0, real, plan.kept)
    return DispatchPlan(token, token * top_k + choice, slot, kept, plan.counts)


class _Scatter(torch.autograd.Function):
    """Rows of real tokens to rows sorted by expert. Forward and backward are plain gathers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: DispatchPlan) -> Tensor:
        ctx.plan = plan
        return x.index_select(0, plan.token)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        plan: DispatchPlan = ctx.plan
        all_kept = plan.token.numel() == plan.slot.numel()
        weights = None if all_kept else plan.kept.to(grads[0].dtype)
        return _sum_choices(grads[0], plan, weights), None


class _Combine(torch.autograd.Function):
    """Rows sorted by expert to a weighted sum per real token, in float32."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor, plan: DispatchPlan) -> Tensor:
        ctx.save_for_backward(y, weights)
        ctx.plan = plan
        return _sum_choices(y, plan, weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        y, weights = ctx.saved_tensors
        plan: DispatchPlan = ctx.plan
        grad = grads[0].index_select(0, plan.token)  # (R, D)
        row_weights = weights.reshape(-1).index_select(0, plan.assignment).unsqueeze(1)
        grad_y = (grad * row_weights).to(y.dtype)
        per_row = torch.linalg.vecdot(grad.to(weights.dtype), y.to(weights.dtype))  # (R,)
        grad_weights = torch.zeros_like(weights).view(-1)
        grad_weights[plan.assignment] = per_row
        return grad_y, grad_weights.view_as(weights), None


def _sum_choices(rows: Tensor, plan: DispatchPlan, weights: Tensor | None) -> Tensor:
    """Return (N, D), the sum over K of `weights` (N, K) times the routed rows of each token.

    `None` gives every row weight 1; only valid if no assignment was dropped.
    """
    num_tokens, top_k = plan.slot.shape
    if rows.shape[0] == 0:  # everything was dropped, or there are no tokens
        return rows.new_zeros(num_tokens, rows.shape[1])
    picked = rows.index_select(0, plan.slot.reshape(-1))  # (N * K, D)
    if weights is not None:
        picked = picked * weights.reshape(-1, 1)
    if top_k > 1:
        picked = picked.view(num_tokens, top_k, -1).sum(1)
    return picked.to(rows.dtype)


class _Permute(torch.autograd.Function):
    """Reorder rows by a permutation; the backward gathers by its inverse, without atomics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(0, ctx.inverse), None, None


class _AllToAll(torch.autograd.Function):
    """Ragged exchange of rows over a process group; the backward exchanges in reverse."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        out = x.new_empty(sum(receive), x.shape[1])
        dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        out = grads[0].new_empty(sum(ctx.send), grads[0].shape[1])
        dist.all_to_all_single(out, grads[0].contiguous(), ctx.send, ctx.receive, group=ctx.group)
        return out, None, None, None


def run_experts(
    x: Tensor,
    weights: Tensor,
    plan: DispatchPlan,
    experts: Experts,
    group: dist.ProcessGroup | None,
) -> Tensor:
    """Send the rows of `x` to their experts and sum the weighted outputs.

    Args:
        x: (N, D) real tokens, or (M, D) rows of a batch.
        weights: (N, K) or (M, K) float32, 0 for dropped assignments and padding.
        plan: plan of `make_plan` for real tokens, or of `spread` for the rows of a batch.
        experts: experts held by this rank.
        group: ranks over which the experts are distributed; `None` if this rank holds all. Every
            rank of the group must call this function equally often, with any number of rows,
            including 0.

    Returns:
        Tensor of the shape of `x`; zeros at padding.
    """
    # in a decoding step, the overhead of autograd functions would exceed their work
    records = torch.is_grad_enabled()
    rows: Tensor = (
        _Scatter.apply(x, plan)  # type: ignore[no-untyped-call]
        if records
        else x.index_select(0, plan.token)
    )
    rows = experts(rows, plan.counts) if group is None else _remote(rows, plan, experts, group)
    result: Tensor = (
        _Combine.apply(rows, weights, plan)  # type: ignore[no-untyped-call]
        if records
        else _sum_choices(rows, plan, weights)
    )
    return result


def _remote(rows: Tensor, plan: DispatchPlan, experts: Experts, group: dist.ProcessGroup) -> Tensor:
    """Exchange the counts, send rows sorted by global expert, compute, and return the outputs."""
    num_ranks = dist.get_world_size(group)
    incoming = torch.empty_like(plan.counts)
    dist.all_to_all_single(incoming, plan.counts, group=group)
    # one copy to the host, which needs the split sizes
    both = torch.stack([plan.counts, incoming]).view(2, num_ranks, -1)  # (2, P, E_local)
    send, receive = both.sum(-1).tolist()
    by_source = both[1]
    arrived: Tensor = _AllToAll.apply(rows, send, receive, group)  # type: ignore[no-untyped-call]

    # rows arrive ordered by (source rank, local expert); experts need (local expert, source rank)
    local_expert = torch.arange(by_source.shape[1], device=rows.device).repeat(num_ranks)
    of_row = local_expert.repeat_interleave(by_source.reshape(-1), output_size=arrived.shape[0])
    order = of_row.argsort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    grouped: Tensor = _Permute.apply(arrived, order, inverse)  # type: ignore[no-untyped-call]
    grouped = experts(grouped, by_source.sum(0))
    back: Tensor = _Permute.apply(grouped, inverse, order)  # type: ignore[no-untyped-call]
    result: Tensor = _AllToAll.apply(back, receive, send, group)  # type: ignore[no-untyped-call]
    return result
