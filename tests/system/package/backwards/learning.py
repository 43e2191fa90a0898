"""A criterion, an optimizer and a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from ds_seq.criterions import Loss
from ds_seq.data.batch import Batch
from ds_seq.models.output import ModelOutput


def focal(gamma: float) -> Callable[[ModelOutput, Batch], Loss]:
    """Cross entropy with less weight on what is likely already (Lin et al., 2017)."""

    def loss(output: ModelOutput, batch: Batch) -> Loss:
        scores = output.logits.float().log_softmax(-1)
        nll = -scores.gather(1, batch.real_labels[:, None]).squeeze(1)
        total = ((1 - (-nll).exp()) ** gamma * nll).sum()
        return Loss(total, {"nll": nll.detach().sum(), "focal": total.detach()})

    return loss


class Lion(Optimizer):
    """Steps of equal size in the direction of the sign of a mean (Chen et al., 2023)."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, beta1: float, beta2: float) -> None:
        super().__init__(groups, {"lr": lr, "beta1": beta1, "beta2": beta2})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["mean"] = torch.zeros_like(weight)
                mean = state["mean"]
                weight.add_(mean.lerp(weight.grad, 1 - group["beta1"]).sign_(), alpha=-group["lr"])
                mean.lerp_(weight.grad, 1 - group["beta2"])


def triangle(lr: float, max_updates: int, peak: int, end: int) -> Callable[[int], float]:
    """Rise until update `peak`, and fall to 0 at update `end`."""

    def rate(update: int) -> float:
        return lr * min(update / peak, (end - update) / (end - peak))

    return rate
