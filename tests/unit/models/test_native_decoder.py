"""A decoder's step in C says what the operators say, hypothesis by hypothesis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ds_seq.models.cache import DecoderCache
from ds_seq.models.packing import pack_weights
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.modules import native
from ds_seq.modules.native_cache import NativeCache
from tests.native_kernels import kernels

VOCAB, PAD, END = 23, 1, 2
WIDE = {"d_model": 32, "ffn_dim": 48}
FORMS = [
    {},
    {"norm_position": "pre", "norm": {"name": "rms"}, "activation": "swiglu", "linear_bias": False},
    {"norm_position": "pre", "activation": "gelu", "share_embeddings": "none"},
    {"num_heads": 4, "num_kv_heads": 2, "d_model": 64, "ffn_dim": 80, "positions": "learned"},
    {"norm_position": "deepnorm", "activation": "geglu_tanh", "d_model": 48, "num_heads": 1},
    {"activation": "relu_squared", "embedding_norm": True, "decoder_repeats": 2},
    {"moe": {"num_experts": 4, "top_k": 1}, "norm_position": "pre"},
    {"moe": {"num_experts": 3, "top_k": 2}, "activation": "swiglu"},
]


@pytest.fixture(autouse=True)
def library(tmp_path_factory, monkeypatch):
    found = kernels(tmp_path_factory.getbasetemp())
    monkeypatch.setattr(native, "library", lambda: found)


def sources(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Return sources (B, S) of these lengths and their mask."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(4, VOCAB, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return tokens.masked_fill(~mask, PAD), mask


def walk(
    model: Seq2SeqTransformer, lengths: list[int], beam: int, steps: int, kind: type
) -> Iterator[Tensor]:
    """Yield the logits of a search that reorders its hypotheses and loses sentences at random."""
    cache = model.start_cache(model.encode(*sources(lengths)), beam, steps)
    assert type(cache) is kind
    generator = torch.Generator().manual_seed(8)
    count = len(lengths)
    tokens = torch.full((count * beam,), END)
    for step in range(steps):
        yield model.decode_step(tokens, cache)
        if step % 7 == 3 and count > 1:
            count -= 1
            cache.keep_sentences(torch.tensor([count, *range(1, count)]))
        origins = torch.randint(0, beam, (count, beam), generator=generator)
        cache.reorder((torch.arange(count)[:, None] * beam + origins).flatten())
        tokens = torch.randint(4, VOCAB, (count * beam,), generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_search_in_c_is_that_of_the_operators(build, form):
    model = build(**{**WIDE, **form}).eval()
    for parameter in model.parameters():  # an untrained model says nearly the same everywhere
        parameter.mul_(1.5)
    lengths, beam, steps = [5, 1, 9, 3], 3, 24  # so many steps that slots run out
    expected = [*walk(model, lengths, beam, steps, DecoderCache)]
    pack_weights(model)
    found = [*walk(model, lengths, beam, steps, NativeCache)]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_an_encoder_in_c_is_that_of_the_operators(build, form):
    model = build(**{**WIDE, **form, "encoder_repeats": 2, "max_positions": 256}).eval()
    batches = sources([5, 1, 9, 3]), sources([200, 3, 40, 1])  # one more than fits a call's room
    expected = [model.encode(*each).hidden * each[1][:, :, None] for each in batches]
    pack_weights(model)
    assert model._native_encoder is not None
    for batch, states in zip(batches, expected, strict=True):
        torch.testing.assert_close(model.encode(*batch).hidden, states, atol=2e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("beam", [1, 4])
def test_company_does_not_change_a_digit(build, beam):
    model = build(**WIDE).eval()
    pack_weights(model)
    tokens, mask = sources([4, 9, 2, 7, 5, 1, 6])
    encoded = model.encode(tokens, mask)
    cache = model.start_cache(encoded, beam, 6)
    # parts of the same encoded source: products of an encoder depend on the number of rows
    rows = [slice(index, index + 1) for index in range(len(tokens))]
    alone = [encoded._replace(hidden=encoded.hidden[i], mask=encoded.mask[i]) for i in rows]
    parts = [model.start_cache(each, beam, 6) for each in alone]
    newest = torch.full((len(tokens) * beam,), END)
    for _ in range(5):
        together = model.decode_step(newest, cache).view(len(tokens), beam, -1)
        for index, part in enumerate(parts):
            mine = newest[index * beam : (index + 1) * beam]
            assert torch.equal(model.decode_step(mine, part), together[index])
        newest = together.flatten(0, 1).argmax(1)


@pytest.mark.parametrize(
    "form",
    [
        {"positions": "alibi"},
        {"positions": "rotary"},
        {"moe": {"num_experts": 2, "top_k": 1, "router": "sigmoid"}},
        {"moe": {"num_experts": 2, "top_k": 1, "residual": True}},
        {"d_model": 24, "num_heads": 2},
        {"linear": {"name": "bitnet"}},
        {"query_key_norm": True},
    ],
    ids=str,
)
def test_what_it_cannot_express_is_left_to_the_operators(build, form):
    model = build(**{**WIDE, **form}).eval()
    pack_weights(model)
    with torch.no_grad():
        assert len([*walk(model, [2, 3], 2, 3, DecoderCache)]) == 3


@pytest.mark.parametrize("reason", ["gradients", "training", "watched", "int8", "no kernels"])
def test_when_operators_do_it(build, monkeypatch, reason):
    if reason == "no kernels":
        monkeypatch.setattr(native, "library", lambda: None)
    model = build(**WIDE).train(reason == "training")
    pack_weights(model, int8=reason == "int8")
    if reason == "watched":
        model.decoder.layers[0].feed_forward.register_forward_hook(lambda *_: None)
    with torch.set_grad_enabled(reason == "gradients"):
        cache = model.start_cache(model.encode(*sources([2, 3])), 2, 3)
    assert type(cache) is DecoderCache


def test_limits_are_errors(build):
    model = build(**WIDE, positions="learned", max_positions=8).eval()
    pack_weights(model)
    with torch.no_grad():
        encoded = model.encode(*sources([2]))
        short, long = model.start_cache(encoded, 1, 2), model.start_cache(encoded, 1, 20)
        token = torch.tensor([5])
        with pytest.raises(IndexError, match="outside the vocabulary"):
            model.decode_step(token + VOCAB, short)
        for _ in range(2):
            model.decode_step(token, short)
        with pytest.raises(ValueError, match="made for 2 positions"):
            model.decode_step(token, short)
        for _ in range(8):
            model.decode_step(token, long)
        with pytest.raises(ValueError, match="beyond the 8 learned positions"):
            model.decode_step(token, long)
