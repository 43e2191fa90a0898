"""What only a GPU can show; run with ``pytest -m gpu tests/gpu``."""

from __future__ import annotations

import copy
import math
import os
from itertools import accumulate

import pytest
import torch

from ds_seq.config.model import MoeConfig, TransformerConfig
from ds_seq.distributed.device import avoid_cudnn_attention
from ds_seq.models.build import build_seq2seq
from ds_seq.moe.experts import Experts
from ds_seq.moe.grouped import grouped_linear, use_grouped_kernel
from tests.distributed import spine

pytestmark = pytest.mark.gpu


def _model(moe: MoeConfig | None) -> torch.nn.Module:
    config = TransformerConfig(
        d_model=64,
        ffn_dim=128,
        num_heads=4,
        encoder_layers=2,
        decoder_layers=2,
        dropout=0.0,
        moe=moe,
    )
    return build_seq2seq(config, spine.VOCAB, 1, 0, seed=1).eval()


MODELS = [
    None,
    MoeConfig(num_experts=4, top_k=2, capacity_factor=None),
    MoeConfig(num_experts=[4, 2], capacity_factor=1.0, drop="probability", residual=True),
    MoeConfig(num_experts=4, router="cosine", conditional_budget=0.5),
    MoeConfig(num_experts=4, router="sigmoid", top_k=3, shared_experts=1),
    MoeConfig(num_experts=4, router="expert_choice", placement="encoder"),
    MoeConfig(num_experts=4, router="language"),
]


@pytest.mark.parametrize("moe", MODELS)
def test_gpu_and_cpu_give_the_same_logits_and_gradients(moe: MoeConfig | None) -> None:
    batch = spine.batches(0)[1]
    results = []
    for device in ("cpu", "cuda"):
        model = _model(moe).to(device)
        moved = batch.to(device)
        logits = model(moved.inputs).logits
        logits.square().mean().backward()
        grads = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
        results.append((logits.detach().cpu(), grads))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(results[1][1], results[0][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_grouped_matmuls_in_bf16_equal_the_loop_in_fp32(activation: str) -> None:
    counts = torch.tensor([5, 0, 40, 19], device="cuda")  # an idle expert among them
    exact = Experts(32, 48, 4, 0, activation, 0.0, seed=1).cuda()
    rounded = copy.deepcopy(exact).bfloat16()
    x = torch.randn(64, 32, device="cuda")
    results = []
    for experts, dtype in ((exact, torch.float32), (rounded, torch.bfloat16)):
        rows = x.detach().to(dtype, copy=True).requires_grad_()
        y = experts(rows, counts)
        y.float().square().mean().backward()
        results.append([y, rows.grad, *(p.grad for p in experts.parameters())])
    weights = rounded.w1, rounded.w2
    assert use_grouped_kernel(x.bfloat16(), *weights)
    assert not use_grouped_kernel(x, exact.w1, exact.w2)
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_widths_that_the_grouped_kernel_refuses_go_through_the_loop(activation: str) -> None:
    counts = torch.tensor([5, 0, 40, 19], device="cuda")
    experts = Experts(32, 100, 4, 0, activation, 0.0, seed=1).cuda().bfloat16()
    x = torch.randn(64, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    assert not use_grouped_kernel(x, experts.w1, experts.w2)
    experts(x, counts).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


@pytest.mark.parametrize("counts", [[700, 0, 1900, 1496], [4096, 0, 0, 0], [0, 0, 0, 0]])
def test_gradient_of_a_bias_per_expert_is_the_sum_of_the_rows_of_each(counts: list[int]) -> None:
    on_device, rows = torch.tensor(counts, device="cuda"), sum(counts)
    generator = torch.Generator("cuda").manual_seed(1)
    shapes = (rows, 64), (4, 64, 96), (4, 1, 96), (rows, 96)
    x, weight, bias, upstream = (
        torch.randn(shape, device="cuda", generator=generator).bfloat16() for shape in shapes
    )
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    y = grouped_linear(x, weight, bias, on_device)
    grad_x, grad_weight, grad_bias = torch.autograd.grad(y, inputs, upstream)
    ends = list(accumulate(counts))
    for expert, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        exact = upstream[start:end].double().sum(0)
        torch.testing.assert_close(grad_bias[expert, 0].double(), exact, rtol=5e-3, atol=1e-3)
        if end > start:
            own = upstream[start:end].float()
            of_x = own @ weight[expert].detach().float().t()
            of_weight = x[start:end].detach().float().t() @ own
            torch.testing.assert_close(grad_x[start:end].float(), of_x, rtol=2e-2, atol=0.1)
            torch.testing.assert_close(grad_weight[expert].float(), of_weight, rtol=2e-2, atol=0.5)


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
@pytest.mark.parametrize("counts", [[0, 700, 0, 324], [1024, 0, 0, 0], [0, 0, 0, 1024]])
def test_experts_without_tokens_have_zero_gradients(activation: str, counts: list[int]) -> None:
    """Whatever was in the memory before: a kernel that skips an expert must not leave it there."""
    rows = sum(counts)
    experts = Experts(64, 256, 4, 0, activation, 0.0, seed=1).cuda().bfloat16()
    x = torch.randn(rows, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    poison = [torch.full((1 << 20,), math.nan, device="cuda") for _ in range(64)]
    poison += [torch.full_like(p, math.nan) for p in experts.parameters() for _ in range(8)]
    del poison  # the caching allocator gives these blocks to the tensors below
    on_device = torch.tensor(counts, device="cuda")
    assert use_grouped_kernel(x, experts.w1, experts.w2)
    y = experts(x, on_device)
    y.float().square().sum().backward()
    assert bool(y.isfinite().all()) and x.grad is not None and bool(x.grad.isfinite().all())
    exact = copy.deepcopy(experts).float()
    exact.zero_grad()
    exact(x.detach().float(), on_device).square().sum().backward()
    for (name, ours), theirs in zip(experts.named_parameters(), exact.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        for expert, count in enumerate(counts):
            if count == 0:
                assert not ours.grad[expert].any(), (name, expert)
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad.float(), theirs.grad, rtol=0.1, atol=0.03 * scale)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("factor", [None, 0.5])
def test_a_training_step_with_experts_waits_for_no_figure(top_k: int, factor: float | None) -> None:
    """Except for what the optimizer and the log read."""
    config = MoeConfig(num_experts=4, top_k=top_k, capacity_factor=factor)
    model = _model(config).train().cuda().bfloat16()
    batch = spine.batches(0)[1].to("cuda")
    model(batch.inputs).logits.float().sum().backward()  # tables are made in the first call
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        model(batch.inputs).logits.float().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_attention_of_cudnn_is_left_out_once_the_device_is_set_up() -> None:
    avoid_cudnn_attention()
    chosen = "TORCH_CUDNN_SDPA_DEPRIORITIZED" in os.environ
    assert chosen or not torch.backends.cuda.cudnn_sdp_enabled()


def test_moe_in_bf16_trains() -> None:
    model = _model(MoeConfig(num_experts=4)).train().cuda().bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    batch = spine.batches(0)[1].to("cuda")
    losses = []
    for _ in range(30):
        logits = model(batch.inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.float(), batch.real_labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
