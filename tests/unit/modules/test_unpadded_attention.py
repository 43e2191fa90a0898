"""Attention by lengths computes what attention with a mask of padding does.

The kernel needs a GPU. Here, a plain loop over the sequences with the same arguments takes its
place, so that what is tested is how tokens are packed, which offsets are passed, and how outputs
are put back. `tests/gpu/test_unpadded_attention.py` runs the kernel.

Shapes: B batch, T queries, S keys, H heads, Dh width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ds_seq.config.model import TransformerConfig
from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.models import build_seq2seq, seq2seq
from ds_seq.models.seq2seq import padding_mask
from ds_seq.modules import unpadded_attention
from ds_seq.modules.attention import attend
from ds_seq.modules.kv_cache import KeyValue
from ds_seq.modules.unpadded_attention import attend_unpadded, lengths_of

CALLS: list[int] = []


def loop(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend sequence by sequence; the arguments of `torch.nn.attention.varlen.varlen_attn`."""
    CALLS.append(len(query))
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert (cu_seq_q[-1], cu_seq_k[-1]) == (len(query), len(key))
    outputs = []
    bounds = [cu_seq_q[:-1], cu_seq_q[1:], cu_seq_k[:-1], cu_seq_k[1:]]
    for first_q, last_q, first_k, last_k in zip(*(b.tolist() for b in bounds), strict=True):
        assert last_q - first_q <= max_q
        assert last_k - first_k <= max_k
        own = (x.transpose(0, 1) for x in (query[first_q:last_q], key[first_k:last_k]))
        values = value[first_k:last_k].transpose(0, 1)
        out = F.scaled_dot_product_attention(*own, values, enable_gqa=enable_gqa)
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attend by lengths in every model, with the loop."""
    monkeypatch.setattr(unpadded_attention, "_kernel", lambda: loop)
    monkeypatch.setattr(
        seq2seq, "lengths_of_mask", lambda mask, like, count: lengths_of(mask, count)
    )
    CALLS.clear()
    yield


def _mask(lengths: Sequence[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def test_real_tokens_and_their_offsets() -> None:
    mask = _mask((3, 1, 2))
    found = lengths_of(mask, count=6)
    assert found.rows.tolist() == [0, 1, 2, 3, 6, 7]
    assert found.offsets.tolist() == [0, 3, 4, 6]
    assert found.offsets.dtype == torch.int32


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("is_self", [True, False])
def test_lengths_are_a_mask(kv_heads: int, is_self: bool) -> None:
    mask = _mask((7, 2, 5))
    lengths = lengths_of(mask, int(mask.sum()))
    queries = 7 if is_self else 4
    query = torch.randn(3, 4, queries, 8).double().requires_grad_()
    key, value = (torch.randn(3, kv_heads, 7, 8).double().requires_grad_() for _ in range(2))
    real = mask if is_self else torch.ones(3, 4, dtype=torch.bool)
    bias = padding_mask(mask, query)
    outputs = [
        attend_unpadded(query, key, value, lengths, lengths if is_self else None, loop),
        attend(query, KeyValue(key, value), bias, dropout=0.0),
    ]
    found, expected = (
        [out[real], *torch.autograd.grad(out[real].square().sum(), (query, key, value))]
        for out in outputs
    )
    torch.testing.assert_close(found, expected)
    assert not outputs[0][~real].any()


@pytest.mark.parametrize("options", [{}, {"norm_position": "post", "num_kv_heads": 2}])
def test_a_model_scores_and_learns_the_same(
    options: dict[str, object], request: pytest.FixtureRequest
) -> None:
    sizes = {"d_model": 16, "ffn_dim": 32, "num_heads": 4, "dropout": 0.0, **options}
    config = TransformerConfig.model_validate({"encoder_layers": 2, "decoder_layers": 2, **sizes})
    source_mask, target_mask = _mask((6, 2, 9)), _mask((4, 7, 1))
    source, target = (torch.randint(4, 20, mask.shape) for mask in (source_mask, target_mask))
    counts = {"num_targets": int(target_mask.sum()), "num_sources": int(source_mask.sum())}
    inputs = Seq2SeqInputs(source, source_mask, target, target_mask, **counts)
    model = build_seq2seq(config, 20, expert_parallel=1, expert_parallel_rank=0, seed=1)
    results = []
    for is_unpadded in (False, True):
        if is_unpadded:
            request.getfixturevalue("as_on_a_gpu")
        logits = model(inputs).logits
        results.append([logits, *torch.autograd.grad(logits.square().sum(), model.parameters())])
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)
    # encoder: real queries only; cross-attention: all, since padding of targets is not known
    assert CALLS == [17, 17, 21, 21]


def test_nothing_changes_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    mask, like = _mask((300, 2)), torch.zeros(1, dtype=torch.float16)
    monkeypatch.delenv("DS_SEQ_UNPADDED", raising=False)
    assert not unpadded_attention.serves(mask, like)
    monkeypatch.setenv("DS_SEQ_UNPADDED", "1")
    assert not unpadded_attention.serves(mask, like)  # not on a CPU either
