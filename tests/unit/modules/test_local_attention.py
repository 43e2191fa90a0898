"""A window in blocks of queries computes what all scores at once would.

Shapes: B batch, T length, D width, H heads, Dh width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from ds_seq.config.model import TransformerConfig
from ds_seq.models import build_seq2seq
from ds_seq.models.seq2seq import padding_mask
from ds_seq.models.stack import Stack
from ds_seq.modules import local_attention
from ds_seq.modules.attention import SelfAttention
from ds_seq.modules.body import Context
from ds_seq.modules.position_bias import AlibiBias, BucketBias, Window

WIDTH, HEADS, SIZE = 16, 4, 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 queries, so that short texts have several."""
    monkeypatch.setattr(local_attention, "_MULTIPLE", 8)


def _inputs(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return hidden states (B, T, D) and their mask (B, T)."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), max(lengths), WIDTH), mask


def _contexts(window: Window, x: Tensor, mask: Tensor) -> tuple[Context, Context]:
    """Return the context of blocks, and that of all scores at once."""
    attention_mask = padding_mask(mask, x)
    blocks = window.blocks(x)
    assert blocks is not None
    places = torch.arange(x.size(1))
    bias = window(places[:, None] - places).to(x.dtype)
    return (
        Context(attention_mask=attention_mask, local=blocks),
        Context(attention_mask=attention_mask, position_bias=bias),
    )


def _bias(name: str, causal: bool) -> nn.Module | None:
    if name == "none":
        return None
    if name == "alibi":
        return AlibiBias(HEADS, causal)
    buckets = BucketBias(HEADS, causal, num_buckets=8, max_distance=16)
    nn.init.normal_(buckets.weight)
    return buckets


def _outcome(
    attention: SelfAttention, window: Window, x: Tensor, context: Context, mask: Tensor
) -> list[Tensor]:
    """Return the real outputs, and the gradients of inputs and of all parameters."""
    leaves = [x, *attention.parameters(), *window.parameters()]
    output = attention(x, context).y[mask]
    weights = torch.linspace(-1, 1, output.numel()).view_as(output).to(output.dtype)
    return [output, *torch.autograd.grad((output * weights).sum(), leaves)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [HEADS, 2])
@pytest.mark.parametrize("name", ["none", "alibi", "buckets"])
@pytest.mark.parametrize("lengths", [(32, 32), (37, 3, 20)])
def test_blocks_compute_all_scores_at_once(
    causal: bool, kv_heads: int, name: str, lengths: Sequence[int]
) -> None:
    x, mask = _inputs(lengths)
    window = Window(SIZE, _bias(name, causal), causal).double()
    attention = SelfAttention(WIDTH, HEADS, 0.0, causal, num_kv_heads=kv_heads).double()
    x = x.double().requires_grad_()
    found, expected = (
        _outcome(attention, window, x, context, mask)
        for context in _contexts(window, x.detach(), mask)
    )
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_blocks_stay_finite_in_half_precision(dtype: torch.dtype) -> None:
    """Also at padding, where no key is within the window, and which every layer computes."""
    x, mask = _inputs((40, 2))
    window = Window(SIZE, None, causal=False)
    attention = SelfAttention(WIDTH, HEADS, 0.0, causal=False).to(dtype)
    local, whole = _contexts(window, x.to(dtype), mask)
    found, expected = (attention(x.to(dtype), context).y for context in (local, whole))
    assert found.isfinite().all()
    torch.testing.assert_close(found[mask], expected[mask], atol=0.02, rtol=0.02)


def test_a_block_reaches_exactly_as_far_as_the_window() -> None:
    x, mask = _inputs((64,))
    x.requires_grad_()
    attention = SelfAttention(WIDTH, HEADS, 0.0, causal=False)
    local, _ = _contexts(Window(SIZE, None, causal=False), x, mask)
    for query in (0, 15, 16, 40, 63):
        (grad,) = torch.autograd.grad(attention(x, local).y[0, query].sum(), x)
        seen = grad[0].abs().sum(-1).nonzero().squeeze(1).tolist()
        first, last = max(query - SIZE + 1, 0), min(query + SIZE - 1, 63)
        assert seen == list(range(first, last + 1))


def _stack(**options: object) -> Stack:
    sizes = {"d_model": WIDTH, "num_heads": HEADS, "ffn_dim": 8, "dropout": 0.0}
    layers = {"encoder_layers": 2, "decoder_layers": 1}
    config = TransformerConfig.model_validate({**sizes, **layers, **options})
    return build_seq2seq(config, 20, expert_parallel=1, expert_parallel_rank=0, seed=1).encoder


@pytest.mark.parametrize("recompute", [False, True])
def test_a_stack_uses_blocks_for_long_texts_only(
    monkeypatch: pytest.MonkeyPatch, recompute: bool
) -> None:
    stack = _stack(attention_window=SIZE, activation_checkpointing=recompute)
    x, _ = _inputs((50,))
    calls: list[int] = []
    attend = local_attention.LocalAttention.attend

    def counted(self: local_attention.LocalAttention, *args: object) -> Tensor:
        calls.append(1)
        return attend(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(local_attention.LocalAttention, "attend", counted)
    found = stack(x, Context()).hidden
    assert len(calls) == 2
    stack(x[:, :31], Context())
    stack(x, Context(), "attention")
    assert len(calls) == 2
    monkeypatch.setattr(local_attention, "_FEWEST_BLOCKS", math.inf)
    torch.testing.assert_close(found, stack(x, Context()).hidden)
    found.sum().backward()
