"""The norm that ZeRO's wrappers are handed, without their processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ds_seq.training.clipping import NormWeights, _weigh_zero


def _wrapper() -> SimpleNamespace:
    """As DeepSpeed does it: a norm for each pair of gradient and parameter, and their norm."""

    def direct(gradients: list[Tensor], params: list[nn.Parameter], norm_type: int = 2) -> Tensor:
        pairs = zip(gradients, params, strict=True)
        norms = [torch.linalg.vector_norm(g.double(), ord=norm_type) for g, _ in pairs]
        return torch.stack(norms).norm().float() if norms else torch.zeros(())

    return SimpleNamespace(
        get_grad_norm_direct=direct,
        complete_grad_norm_calculation_for_cpu_offload=lambda params: torch.zeros(()),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
def test_one_vector_of_norms_gives_the_norm_of_all(dtype: torch.dtype, weighted: bool) -> None:
    params = [nn.Parameter(torch.zeros(size)) for size in (3, 70, 1)]
    gradients = [torch.randn_like(p).to(dtype) for p in params]
    weights: NormWeights = {id(params[1]): 0.5} if weighted else {}
    wrapper = _wrapper()
    _weigh_zero(wrapper, weights)
    padding = torch.zeros(5, dtype=dtype)
    padding._zero_padding = True  # type: ignore[attr-defined]
    unmarked = torch.zeros(2, dtype=dtype)  # at the end, not all of DeepSpeed's paths mark it
    gradients_of_rank = [gradients[0], padding, *gradients[1:], unmarked]
    found = wrapper.get_grad_norm_direct(gradients_of_rank, params)
    counted = [weights.get(id(p), 1.0) * g.double() for g, p in zip(gradients, params, strict=True)]
    torch.testing.assert_close(found, torch.cat(counted).norm().float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_makes_the_norm_none(value: float) -> None:
    params = [nn.Parameter(torch.zeros(4)) for _ in range(2)]
    wrapper = _wrapper()
    _weigh_zero(wrapper, {})
    found = wrapper.get_grad_norm_direct([torch.ones(4), torch.full((4,), value)], params)
    assert not found.isfinite()


def test_a_rank_without_parameters_has_none() -> None:
    wrapper = _wrapper()
    _weigh_zero(wrapper, {})
    assert wrapper.get_grad_norm_direct([], []).item() == 0.0
    assert wrapper.get_grad_norm_direct([torch.zeros(6)], []).item() == 0.0
