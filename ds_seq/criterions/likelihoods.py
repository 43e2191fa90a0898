"""Log-likelihoods of single tokens, for losses that weight each of them differently.

Shapes: B targets, T target length, N real target tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds_seq.criterions.cross_entropy import (
    LikelihoodSums,
    LogitGradient,
    row_slices,
    softmax_rows,
    subtract_targets,
)

_ALL_TERMS = (0.0, 1.0)  # smoothing with which `LikelihoodSums` fills in both terms
_TARGET_ONLY = (1.0, 0.0)


def token_likelihoods(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the terms of the cross entropy of each token, both differentiable.

    As in `smoothed_cross_entropy`, logits get their gradient in place, and no (N, V) tensor other
    than that gradient exists in full.

    Args:
        logits: (N, V), any floating dtype; the arithmetic is float32.
        targets: (N,) int64.

    Returns:
        (nll, spread): (N,) float32 each, in nats: -log p of the target, and the sum of -log p over
        all tokens.
    """
    nll, spread = _TokenLikelihoods.apply(logits, targets)  # type: ignore[no-untyped-call]
    return nll, spread


def target_sums(values: Tensor, mask: Tensor) -> Tensor:
    """Sum values of real tokens (N,) over each target of a mask (B, T); returns (B,)."""
    rows = torch.arange(len(mask), device=values.device)
    rows = rows.repeat_interleave(mask.sum(1), output_size=len(values))
    return values.new_zeros(len(mask)).index_add(0, rows, values)


class _TokenLikelihoods(torch.autograd.Function):
    """Store p - 1[target] and scale its rows in the backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        gradient = LogitGradient(logits, bound=1.0) if ctx.needs_input_grad[0] else None
        sums = LikelihoodSums(logits, _ALL_TERMS)
        for rows in row_slices(logits):
            token = targets[rows].unsqueeze(1)
            place = None if gradient is None else gradient.place(rows)
            softmax = softmax_rows(logits[rows], place)
            sums.note(rows, softmax, token)
            if gradient is not None:
                subtract_targets(softmax.probs, token, _TARGET_ONLY, weight=1.0)
                gradient.put(rows, softmax.probs)
        if gradient is not None:
            ctx.scale = gradient.scale
            ctx.save_for_backward(gradient.buffer, targets)
        return sums.nll, sums.spread

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_nll: Tensor, of_spread: Tensor) -> tuple[Tensor, None]:
        buffer, targets = ctx.saved_tensors
        vocab = buffer.shape[1]
        # d nll = p - 1[target]; d spread = V p - 1 = V (p - 1[target]) + V 1[target] - 1
        factor = ((of_nll + vocab * of_spread) / ctx.scale).unsqueeze(1)  # (N, 1)
        shift = of_spread.unsqueeze(1)
        for rows in row_slices(buffer):
            block = buffer[rows].float().mul_(factor[rows]).sub_(shift[rows])
            block.scatter_add_(1, targets[rows].unsqueeze(1), vocab * shift[rows])
            buffer[rows] = block
        return buffer, None
