"""Gradient norm for clipping: corrections of what DeepSpeed 0.19 computes wrongly.

- Without ZeRO in fp32, the engine averages the norms of the ranks, although with expert parallelism
  each rank holds different experts. `PlainClipping` replaces its clipping.
- Without ZeRO in half precision, the reported norm still includes the loss scale.
- SparseClip (`train.sparse_clip`) multiplies the gradient norm of an expert, which sees about 1 / E
  of the tokens, by 1 / sqrt(E). `correct_norm` passes these weights to each of DeepSpeed's wrappers
  around the optimizer. The clipping coefficient still multiplies all gradients equally.
- ZeRO 1 and 2 in bf16, unless they check each gradient, apply an update whose norm is not finite.
- ZeRO 1 and 2 compute the norms one gradient at a time, each through a float64 copy. On a GPU these
  are several hundred kernels that the step has to launch; `_weigh_zero` launches only a few.
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
"""id of a parameter -> weight of its gradient in the norm, where it is not 1."""


def sparse_clip_weights(model: nn.Module) -> dict[int, float]:
    """Return `1 / sqrt(E)` for each expert parameter, E being all experts of its layer.

    The original method uses `max(ranks, E)`; leaving out the ranks makes the norm the same in every
    layout.
    """
    weights = {}
    for layer in model.modules():
        if isinstance(layer, MoeFeedForward):
            for parameter in layer.experts.parameters():
                weights[id(parameter)] = layer.num_experts**-0.5
    return weights


class PlainClipping:
    """Computes the norm and clips at stage 0 in fp32, counting each expert once.

    Like the wrappers of the other stages, it skips an update whose norm is not finite.

    Args:
        engine: a `DeepSpeedEngine` without ZeRO; its own clipping is replaced.
        weights: see `NormWeights`.
        expert_parallel: ranks that share the experts.
    """

    def __init__(self, engine: Any, weights: NormWeights, expert_parallel: int) -> None:
        self._engine = engine
        self._model: nn.Module = engine.module
        self._device, self._max_norm = engine.device, float(engine.gradient_clipping())
        self._weights, self._expert_parallel = weights, expert_parallel
        self.norm = 0.0
        engine.clip_fp32_gradients = self._clip

    def measure(self) -> None:
        """Set `norm` from the reduced gradients, before the step. A collective.

        If the norm is not finite, the gradients are removed, and the step does nothing.
        """
        with_gradient = [p for p in self._model.parameters() if p.grad is not None]
        spread = ["group_name" in vars(p) for p in with_gradient]
        dense = [p for p, is_spread in zip(with_gradient, spread, strict=True) if not is_spread]
        total = self._squared_norm(dense)
        if self._expert_parallel > 1:
            # the ranks of this group hold different experts; together they hold all
            experts = [p for p, is_spread in zip(with_gradient, spread, strict=True) if is_spread]
            of_experts = self._squared_norm(experts)
            dist.all_reduce(of_experts, group=expert_parallel_group(self._expert_parallel))
            total = total + of_experts
        self.norm = math.sqrt(float(total))
        # the flag by which all of DeepSpeed's wrappers say that they have skipped an update
        self._engine.optimizer.overflow = not math.isfinite(self.norm)
        if self._engine.optimizer.overflow:
            for parameter in with_gradient:  # an optimizer leaves what has no gradient
                parameter.grad = None

    def _squared_norm(self, parameters: list[nn.Parameter]) -> Tensor:
        if not parameters:
            return torch.zeros((), device=self._device)
        norms = torch.stack(torch._foreach_norm([p.grad for p in parameters if p.grad is not None]))
        weights = [self._weights.get(id(p), 1.0) for p in parameters]
        return (norms.float() * torch.tensor(weights, device=norms.device)).square().sum()

    def _clip(self) -> None:
        scale = self._max_norm / (self.norm + 1e-6)
        if scale < 1.0 and math.isfinite(self.norm):
            gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, scale)


def correct_norm(wrapper: Any, weights: NormWeights) -> None:
    """Make DeepSpeed's `wrapper` of the optimizer clip by the weighted norm, and report it.

    Args:
        wrapper: the wrapper of stage 0 in half precision, or of ZeRO 1, 2 or 3.
        weights: see `NormWeights`.
    """
    if isinstance(wrapper, FP16_UnfusedOptimizer):
        _correct_unfused(wrapper, weights)
    elif weights and isinstance(wrapper, BF16_Optimizer):
        _weigh_bf16(wrapper, weights)
    elif weights or (isinstance(wrapper, DeepSpeedZeroOptimizer) and torch.cuda.is_available()):
        _weigh_zero(wrapper, weights)
    if isinstance(wrapper, DeepSpeedZeroOptimizer) and not wrapper.check_grad_overflow:
        _check_norm_only(wrapper)


def _correct_unfused(wrapper: Any, weights: NormWeights) -> None:
    """Correct stage 0 in half precision, where gradients are clipped as whole fp32 tensors."""
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
    """Correct stage 1 in bf16 with fp32 accumulation, where the wrapper lists gradients.

    The list holds the weighted norms instead: the norm of a single number is its absolute value.
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
    """Weight gradients under ZeRO 1, 2 and 3, or their recorded norms with an offloaded optimizer.

    The norm of a vector of norms is the global norm, so DeepSpeed receives this one vector.
    """
    direct, offloaded = (
        wrapper.get_grad_norm_direct,
        wrapper.complete_grad_norm_calculation_for_cpu_offload,
    )

    def get_grad_norm_direct(
        gradients: list[Tensor], params: list[nn.Parameter], norm_type: int = 2
    ) -> Tensor:
        # stages 1 and 2 pad a rank's share with zeros that belong to no parameter: between the
        # gradients they are marked, at the end only in some of their paths
        real = [g for g in gradients if "_zero_padding" not in vars(g)]
        if len(real) < len(params):
            raise RuntimeError(f"{len(real)} gradients for {len(params)} parameters")
        real = real[: len(params)]
        if real:
            norms = torch.stack(torch._foreach_norm(real, 2, torch.float32))
            if weights:
                factors = [weights.get(id(p), 1.0) for p in params]
                norms = norms * torch.tensor(factors, device=norms.device)
            real, params = [norms], params[:1]
        result: Tensor = direct(real, params, norm_type)
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


def _check_norm_only(wrapper: Any) -> None:
    """Let ZeRO 1 and 2 skip an update whose norm is not finite, without a check of each gradient.

    The flag asks for both checks. With neither, an update in bf16 would set all weights to NaN.
    """
    wrapper.check_grad_overflow = True
    wrapper.check_overflow = lambda partition_gradients=True: None


def _norm(gradient: Tensor) -> Tensor:
    """Return the norm, () float32 for gradients of any precision."""
    norm: Tensor = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
    return norm
