"""Who gets a place: assignments sorted by expert, those beyond an expert's capacity dropped.

Shapes: N real tokens, K choices per token, R rows routed (N * K less the dropped ones),
E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ds_seq.moe.losses import expert_counts
from ds_seq.moe.router import Routing


class DispatchPlan(NamedTuple):
    """Who goes where, for one forward."""

    token: Tensor
    """(R,) int64: the real token (0..N-1) of each routed row; rows are sorted by expert."""
    assignment: Tensor
    """(R,) int64: token * K + choice of each routed row."""
    slot: Tensor
    """(N, K) int64: the routed row of each assignment; 0 where it was dropped."""
    kept: Tensor
    """(N, K) bool: whether the assignment is carried out."""
    counts: Tensor
    """(E,) int64: rows per expert."""


def make_plan(
    experts: Tensor,
    num_experts: int,
    capacity: int | None,
    priority: Tensor | None = None,
    valid: Tensor | None = None,
) -> DispatchPlan:
    """Sort assignments by expert and drop those beyond `capacity`.

    Within one expert the places go to first choices before second ones, and among these to tokens
    of higher `priority`, earlier ones first.

    Args:
        experts: (N, K) chosen experts.
        num_experts: E.
        capacity: places per expert; `None` drops nothing.
        priority: (N,) float32; `None`: earlier tokens first (GShard's rule).
        valid: (N, K) bool, False for choices that do not exist; `None`: all do.
    """
    num_tokens, top_k = experts.shape
    owner = experts.reshape(-1)  # (N * K,): the expert of each assignment
    if valid is not None:  # behind the last expert, where they are cut off
        owner = owner.masked_fill(~valid.reshape(-1), num_experts)
    # without a capacity there is nothing to queue for, and any order within an expert will do
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
        order = order[has_place if valid is None else has_place & (owner < num_experts)]
        counts = counts[:num_experts].clamp(max=capacity)
    elif valid is not None:
        counts = counts[:num_experts]
        order = order[: int(counts.sum())]
    assignment = order if queue is None else queue.index_select(0, order)
    token = assignment if top_k == 1 else assignment // top_k
    slot, kept = _places(assignment, num_tokens * top_k)
    return DispatchPlan(token, assignment, slot.view(-1, top_k), kept.view(-1, top_k), counts)


def _queue(
    num_tokens: int, top_k: int, priority: Tensor | None, device: torch.device
) -> Tensor | None:
    """(N * K,) assignments, those to be served first in front; `None`: as they are."""
    if top_k == 1 and priority is None:
        return None
    assignments = torch.arange(num_tokens * top_k, device=device).view(num_tokens, top_k)
    if priority is not None:
        assignments = assignments[priority.argsort(descending=True, stable=True)]
    return assignments.t().reshape(-1)


def _stable_order(owner: Tensor, num_owners: int) -> Tensor:
    """`owner.argsort(stable=True)`."""
    if num_owners <= torch.iinfo(torch.int16).max:
        owner = owner.to(torch.int16)  # a radix sort takes a quarter of the passes
    if owner.device.type == "cpu":
        # of 16-bit numbers numpy makes a radix sort, torch a merge sort: of 2,048 tokens a third
        # of its time, of 16,384 a tenth
        return torch.from_numpy(owner.numpy().argsort(kind="stable"))
    return owner.argsort(stable=True)


def _places(assignment: Tensor, num_assignments: int) -> tuple[Tensor, Tensor]:
    """The row of each assignment, (N * K,) int64, and whether it has one, (N * K,) bool."""
    rows = torch.arange(assignment.numel(), device=assignment.device)
    if len(rows) == num_assignments:
        kept = torch.ones(num_assignments, dtype=torch.bool, device=rows.device)
        return torch.empty_like(rows).scatter_(0, assignment, rows), kept
    slot = torch.zeros(num_assignments, dtype=torch.int64, device=rows.device)
    kept = torch.zeros(num_assignments, dtype=torch.bool, device=rows.device)
    return slot.scatter_(0, assignment, rows), kept.index_fill_(0, assignment, True)


def priorities(routing: Routing, drop: str) -> Tensor | None:
    """(N,) float32 for `make_plan`, or `None` for the order of the tokens.

    Args:
        routing: the router's answer.
        drop: `position`; `probability`: tokens by their best score (batch-prioritised routing,
            V-MoE, arXiv:2106.05974); `random`: random token selection of DeepSpeed.
    """
    if drop == "position":
        return None
    if drop == "random":
        return torch.rand(routing.weights.shape[0], device=routing.weights.device)
    weights = routing.weights.detach()
    return (weights if routing.valid is None else weights * routing.valid).amax(-1)
