"""Dispatch plans: sort assignments by expert and drop those beyond an expert's capacity.

Shapes: N real tokens, K choices per token, R routed rows (N * K minus the dropped ones),
E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ds_seq.moe.losses import expert_counts
from ds_seq.moe.router import Routing


class DispatchPlan(NamedTuple):
    """Which token goes to which expert, for one forward pass."""

    token: Tensor
    """(R,) int64: real token (0..N-1) of each routed row; rows are sorted by expert. Rows of
    assignments that are not `kept` have no weight."""
    assignment: Tensor
    """(R,) int64: token * K + choice of each routed row."""
    slot: Tensor
    """(N, K) int64: routed row of each assignment; 0 if it was dropped."""
    kept: Tensor
    """(N, K) bool: False if the assignment was dropped."""
    counts: Tensor
    """(E,) int64: number of rows per expert."""


def make_plan(
    experts: Tensor,
    num_experts: int,
    capacity: int | None,
    priority: Tensor | None = None,
    valid: Tensor | None = None,
    mark_only: bool = False,
) -> DispatchPlan:
    """Sort assignments by expert and drop those beyond `capacity`.

    An expert accepts first choices before second choices, among these tokens of higher `priority`,
    and among these earlier tokens.

    Args:
        experts: (N, K) int64, chosen experts.
        num_experts: number of experts, E.
        capacity: largest number of rows per expert; `None` drops nothing.
        priority: (N,) float32; `None` prefers earlier tokens (as in GShard).
        valid: (N, K) bool, False for choices that do not exist; `None` if all exist.
        mark_only: whether assignments beyond the capacity keep their rows and are only marked as
            not `kept`. A GPU need not wait to know how many rows there are. Ignored with `valid`.
    """
    num_tokens, top_k = experts.shape
    owner = experts.reshape(-1)  # (N * K,): the expert of each assignment
    if valid is not None:  # sorted after the last expert, and cut off there
        owner = owner.masked_fill(~valid.reshape(-1), num_experts)
    # without a capacity, the order within an expert does not matter
    queue = None if capacity is None else _queue(num_tokens, top_k, priority, owner.device)
    if queue is not None:
        owner = owner.index_select(0, queue)
    order = _stable_order(owner, num_experts + 1)
    counts = expert_counts(owner, num_experts + (valid is not None))
    if capacity is not None:
        first_row = counts.cumsum(0) - counts
        owner = owner.index_select(0, order)
        place = torch.arange(order.numel(), device=order.device) - first_row.index_select(0, owner)
        has_place = place < capacity
        if mark_only and valid is None:
            assignment = order if queue is None else queue.index_select(0, order)
            return _all_rows(assignment, top_k, counts[:num_experts], has_place)
        order = order[has_place if valid is None else has_place & (owner < num_experts)]
        counts = counts[:num_experts].clamp(max=capacity)
    elif valid is not None:
        counts = counts[:num_experts]
        order = order[: int(counts.sum())]
    assignment = order if queue is None else queue.index_select(0, order)
    token = assignment if top_k == 1 else assignment // top_k
    slot, kept = _places(assignment, num_tokens * top_k)
    return DispatchPlan(token, assignment, slot.view(-1, top_k), kept.view(-1, top_k), counts)


def _all_rows(assignment: Tensor, top_k: int, counts: Tensor, has_place: Tensor) -> DispatchPlan:
    """Return the plan in which every assignment has a row, kept or not."""
    slot, _ = _places(assignment, assignment.numel())
    kept = torch.empty_like(has_place).scatter_(0, assignment, has_place)
    token = assignment if top_k == 1 else assignment // top_k
    return DispatchPlan(token, assignment, slot.view(-1, top_k), kept.view(-1, top_k), counts)


def _queue(
    num_tokens: int, top_k: int, priority: Tensor | None, device: torch.device
) -> Tensor | None:
    """Return the assignments (N * K,) by precedence; `None` for their present order."""
    if top_k == 1 and priority is None:
        return None
    assignments = torch.arange(num_tokens * top_k, device=device).view(num_tokens, top_k)
    if priority is not None:
        assignments = assignments[priority.argsort(descending=True, stable=True)]
    return assignments.t().reshape(-1)


def _stable_order(owner: Tensor, num_owners: int) -> Tensor:
    """Return `owner.argsort(stable=True)`, computed faster."""
    if num_owners <= torch.iinfo(torch.int16).max:
        owner = owner.to(torch.int16)  # a radix sort needs a quarter of the passes
    if owner.device.type == "cpu":
        # for 16-bit numbers, numpy uses a radix sort and torch a merge sort, which takes 3 times as
        # long for 2,048 tokens and 10 times for 16,384
        return torch.from_numpy(owner.numpy().argsort(kind="stable"))
    return owner.argsort(stable=True)


def _places(assignment: Tensor, num_assignments: int) -> tuple[Tensor, Tensor]:
    """Return the row of each assignment, (N * K,) int64, and whether it exists, (N * K,) bool."""
    rows = torch.arange(assignment.numel(), device=assignment.device)
    if len(rows) == num_assignments:
        kept = torch.ones(num_assignments, dtype=torch.bool, device=rows.device)
        return torch.empty_like(rows).scatter_(0, assignment, rows), kept
    slot = torch.zeros(num_assignments, dtype=torch.int64, device=rows.device)
    kept = torch.zeros(num_assignments, dtype=torch.bool, device=rows.device)
    return slot.scatter_(0, assignment, rows), kept.index_fill_(0, assignment, True)


def priorities(routing: Routing, drop: str) -> Tensor | None:
    """Return the priorities (N,) float32 for `make_plan`, or `None` for the order of the tokens.

    Args:
        routing: the router's result.
        drop: `position` prefers earlier tokens; `probability` tokens with the highest score
            (batch-prioritized routing, V-MoE, arXiv:2106.05974); `random` random tokens, as in
            DeepSpeed.
    """
    if drop == "position":
        return None
    if drop == "random":
        return torch.rand(routing.weights.shape[0], device=routing.weights.device)
    weights = routing.weights.detach()
    return (weights if routing.valid is None else weights * routing.valid).amax(-1)
