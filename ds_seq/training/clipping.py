"""The norm that clipping compares with its limit: what DeepSpeed 0.19 counts wrong is counted here.

- Without ZeRO in fp32 the engine averages the norms of the ranks, though with expert parallelism
  each holds other experts. `PlainClipping` takes its place.
- Without ZeRO in half precision the norm it tells still has the loss scale in it.
- SparseClip (`train.sparse_clip`) wants the gradient of an expert, which sees one of E parts of the
  tokens, to count 1 / sqrt(E) in the norm. `correct_norm` gives every wrapper of DeepSpeed around
  the optimizer these weights. The coefficient that follows from the norm still multiplies all
  gradients alike.
- ZeRO 1 and 2 take the norm of one gradient after the other, each through a float64 copy: on a GPU
  several hundred kernels, which the step waits to see launched. There a few do (`_weigh_zero`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from ds_seq.moe.engine import expert_parallel_group
from ds_seq.moe.layer import MoeFeedForward

NormWeights = Mapping[int, float]
"""id of a parameter -> what its gradient counts in the norm, where that is not 1."""


def sparse_clip_weights(model: nn.Module) -> dict[int, float]:
    """``1 / sqrt(E)`` for each expert parameter, E being the experts of its layer on all ranks.

    The method this follows takes ``max(ranks, E)``; without the ranks the norm is the same in every
    layout.
    """
    weights = {}
    for layer in model.modules():
        if isinstance(layer, MoeFeedForward):
            for parameter in layer.experts.parameters():
                weights[id(parameter)] = layer.num_experts**-0.5
    return weights


class PlainClipping:
    """Norm and clipping of stage 0 in fp32, each expert counted once.

    Args:
        engine: a ``DeepSpeedEngine`` without ZeRO, whose own clipping is replaced.
        weights: see `NormWeights`.
        expert_parallel: ranks that share the experts.
    """

    def __init__(self, engine: Any, weights: NormWeights, expert_parallel: int) -> None:
        self._model: nn.Module = engine.module
        self._device, self._max_norm = engine.device, float(engine.gradient_clipping())
        self._weights, self._expert_parallel = weights, expert_parallel
        self.norm = 0.0
        engine.clip_fp32_gradients = self._clip

    def measure(self) -> None:
        """Set ``norm`` from the reduced gradients, before the step. A collective."""
        with_gradient = [p for p in self._model.parameters() if p.grad is not None]
        spread = ["group_name" in vars(p) for p in with_gradient]
        dense = [p for p, is_spread in zip(with_gradient, spread, strict=True) if not is_spread]
        total = self._squared_norm(dense)
        if self._expert_parallel > 1:
            # the ranks of this group hold different experts, and together all of them
            experts = [p for p, is_spread in zip(with_gradient, spread, strict=True) if is_spread]
            of_experts = self._squared_norm(experts)
            dist.all_reduce(of_experts, group=expert_parallel_group(self._expert_parallel))
            total = total + of_experts
        self.norm = math.sqrt(float(total))

    def _squared_norm(self, parameters: list[nn.Parameter]) -> Tensor:
        if not parameters:
            return torch.zeros((), device=self._device)
        norms = torch.stack(torch._foreach_norm([p.grad for p in parameters if p.grad is not None]))
        weights = [self._weights.get(id(p), 1.0) for p in parameters]
        return (norms.float() * torch.tensor(weights, device=norms.device)).square().sum()

    def _clip(self) -> None:
        scale = self._max_norm / (self.norm + 1e-6)
        if scale < 1.0:
            gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, scale)


def correct_norm(wrapper: Any, weights: NormWeights) -> None:
    """Make DeepSpeed's ``wrapper`` of the optimizer clip by the weighted norm, and report it.

    Args:
        wrapper: of stage 0 in half precision, or of ZeRO 1, 2 or 3.
        weights: see `NormWeights`.
    """
    if isinstance(wrapper, FP16_UnfusedOptimizer):
        _correct_unfused(wrapper, weights)
    elif weights and isinstance(wrapper, BF16_Optimizer):
        _weigh_bf16(wrapper, weights)
    elif weights or (isinstance(wrapper, DeepSpeedZeroOptimizer) and torch.cuda.is_available()):
        _weigh_zero(wrapper, weights)


def _correct_unfused(wrapper: Any, weights: NormWeights) -> None:
    """Stage 0 in half precision; gradients are in fp32 and whole when they come to be clipped."""
    clip: Callable[..., float] = wrapper.unscale_and_clip_grads

    def unscale_and_clip_grads(total_norm: float, apply_scale: bool = True) -> float:
        if weights:
            total_norm = _combined(_pairs(wrapper.fp16_groups, wrapper.fp32_groups), weights)
        wrapper._global_grad_norm = total_norm / wrapper.loss_scale_config.cur_scale
        return clip(total_norm, apply_scale)

    wrapper.unscale_and_clip_grads = unscale_and_clip_grads


def _pairs(
    halves: list[list[nn.Parameter]], masters: list[list[Tensor]]
) -> Iterable[tuple[nn.Parameter, Tensor]]:
    for half, full in zip(halves, masters, strict=True):
        for parameter, master in zip(half, full, strict=True):
            if master.grad is not None:
                yield parameter, master.grad


def _combined(gradients: Iterable[tuple[nn.Parameter, Tensor]], weights: NormWeights) -> float:
    norms = [_norm(grad) * weights.get(id(parameter), 1.0) for parameter, grad in gradients]
    return float(torch.stack(norms).norm())


def _weigh_bf16(wrapper: Any, weights: NormWeights) -> None:
    """Stage 1 in bf16 with fp32 accumulation: the wrapper lists gradients and takes their norms.

    It is given the weighted norms in their place, for the norm of a single number is its size.
    """
    listed = wrapper.get_grads_for_norm
    weight_of = {
        id(gradient): weights.get(id(parameter), 1.0)
        for group, gradients in zip(wrapper.bf16_groups, wrapper.fp32_groups_gradients, strict=True)
        for parameter, gradient in zip(group, gradients, strict=True)
    }

    def weighted(gradients: list[Tensor]) -> list[Tensor]:
        return [_norm(gradient) * weight_of[id(gradient)] for gradient in gradients]

    def get_grads_for_norm(for_clipping: bool = False) -> Any:
        if for_clipping:
            return listed(for_clipping=True)
        dense, experts = listed()
        return weighted(dense), {name: weighted(grads) for name, grads in experts.items()}

    wrapper.get_grads_for_norm = get_grads_for_norm


def _weigh_zero(wrapper: Any, weights: NormWeights) -> None:
    """ZeRO 1, 2 and 3: the norm of a group is taken of its gradients or, with an offloaded
    optimizer, of norms noted when they arrived. Both are weighted on their way in.

    The norm of a vector of norms is the norm of everything, so DeepSpeed is handed that one vector.
    """
    direct, offloaded = (
        wrapper.get_grad_norm_direct,
        wrapper.complete_grad_norm_calculation_for_cpu_offload,
    )

    def get_grad_norm_direct(
        gradients: list[Tensor], params: list[nn.Parameter], norm_type: int = 2
    ) -> Tensor:
        # stages 1 and 2 append zeros that belong to no parameter, and mark them
        own = [g for g in gradients if "_zero_padding" not in vars(g)]
        if len(own) != len(params):
            raise RuntimeError(f"{len(own)} gradients for {len(params)} parameters")
        if own:
            norms = torch.stack(torch._foreach_norm(own, 2, torch.float32))
            if weights:
                factors = [weights.get(id(p), 1.0) for p in params]
                norms = norms * torch.tensor(factors, device=norms.device)
            own, params = [norms], params[:1]
        result: Tensor = direct(own, params, norm_type)
        return result

    def complete_grad_norm_calculation_for_cpu_offload(params: list[nn.Parameter]) -> Tensor:
        noted = wrapper.norm_for_param_grads
        ids = {wrapper.get_param_id(p): weights.get(id(p), 1.0) for p in params}
        wrapper.norm_for_param_grads = {
            key: noted[key] * weight for key, weight in ids.items() if key in noted
        }
        try:
            result: Tensor = offloaded(params)
        finally:
            wrapper.norm_for_param_grads = noted
        return result

    wrapper.get_grad_norm_direct = get_grad_norm_direct
    wrapper.complete_grad_norm_calculation_for_cpu_offload = (
        complete_grad_norm_calculation_for_cpu_offload
    )


def _norm(gradient: Tensor) -> Tensor:
    """() float32, whatever the precision of the gradient."""
    norm: Tensor = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
    return norm
