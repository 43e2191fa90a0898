"""What only a GPU can show; run with ``pytest -m gpu tests/gpu``."""

from __future__ import annotations

import copy

import pytest
import torch

from ds_seq.config.model import MoeConfig, TransformerConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.moe.experts import Experts
from ds_seq.moe.grouped import RowGroups
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
    return build_seq2seq(config, spine.VOCAB).eval()


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
    groups = RowGroups(torch.tensor([5, 0, 40, 19], device="cuda"))  # an idle expert among them
    exact = Experts(32, 48, 4, 0, activation, 0.0, seed=1).cuda()
    rounded = copy.deepcopy(exact).bfloat16()
    x = torch.randn(64, 32, device="cuda")
    results = []
    for experts, dtype in ((exact, torch.float32), (rounded, torch.bfloat16)):
        rows = x.detach().to(dtype, copy=True).requires_grad_()
        y = experts(rows, groups)
        y.float().square().mean().backward()
        results.append([y, rows.grad, *(p.grad for p in experts.parameters())])
    assert groups.use_grouped_kernel(x.bfloat16()) and not groups.use_grouped_kernel(x)
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.1, atol=0.05)


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
