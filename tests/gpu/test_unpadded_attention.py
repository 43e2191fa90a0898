"""Attention by lengths with its kernel; run with ``pytest -m gpu tests/gpu``."""

from __future__ import annotations

import pytest
import torch

from ds_seq.models.seq2seq import padding_mask
from ds_seq.modules import unpadded_attention
from ds_seq.modules.attention import attend
from ds_seq.modules.kv_cache import KeyValue
from ds_seq.modules.unpadded_attention import lengths_of, serves

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("is_self", [True, False])
def test_the_kernel_equals_attention_with_a_mask(
    dtype: torch.dtype, kv_heads: int, is_self: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_SEQ_UNPADDED", "1")
    if unpadded_attention._kernel() is None:
        pytest.skip("this PyTorch has no attention by lengths")
    lengths = torch.tensor([300, 17, 256], device="cuda")
    mask = torch.arange(300, device="cuda") < lengths[:, None]
    found = lengths_of(mask, 573)
    queries = 300 if is_self else 40
    make = {"dtype": dtype, "device": "cuda", "requires_grad": True}
    query = torch.randn(3, 8, queries, 64, **make)
    key, value = (torch.randn(3, kv_heads, 300, 64, **make) for _ in range(2))
    assert serves(mask, query)
    real = mask if is_self else torch.ones(3, queries, dtype=torch.bool, device="cuda")
    outputs = [
        found.attend(query, key, value, found if is_self else None),
        attend(query, KeyValue(key, value), padding_mask(mask, query), dropout=0.0),
    ]
    results = [
        [out[real], *torch.autograd.grad(out[real].float().square().mean(), (query, key, value))]
        for out in outputs
    ]
    torch.testing.assert_close(*results, atol=1e-2, rtol=2e-2)
