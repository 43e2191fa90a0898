"""Step-by-step decoding agrees with the whole forward, however beams are reordered."""

from __future__ import annotations

import copy

import pytest
import torch

from ds_seq.models.stack import Stack
from tests.batches import encode, score
from tests.unit.models.sections import ROUTERS

VOCAB, BEAM = 23, 3
SHAPES = [
    {"positions": "sinusoidal", "norm_position": "post"},
    {"positions": "learned", "norm_position": "pre"},
    {"positions": "rotary", "norm_position": "pre"},
    {"moe": {"num_experts": 4, "top_k": 1, "every": 1, "capacity_factor": 1.0}},
    *({"moe": moe} for moe in ROUTERS.values()),
    {"moe": {**ROUTERS["softmax"], "num_experts": [2, 4, 4, 3], "shared_experts": 1}},
    {"moe": {**ROUTERS["language"], "conditional_budget": 0.5}},
]


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beam", [1, BEAM])
@pytest.mark.parametrize("shape", SHAPES)
def test_cached_decoding_is_the_full_forward(build, pairs, shape, beam):
    model = build(**shape).eval()
    length = 40  # more than a fresh cache has room for
    src = pairs.src.repeat_interleave(beam, 0)
    tgt = torch.randint(4, VOCAB, (len(src), length), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = score(model, src, tgt).logits
        cache = model.start_cache(encode(model, pairs.src), beam, max_length=length)
        for step in range(length):
            assert_same(model.decode_step(tgt[:, step], cache), expected[:, step])
            assert cache.length == step + 1


@pytest.mark.parametrize("shape", SHAPES)
def test_beams_that_move_and_sentences_that_end(build, pairs, shape):
    """A random walk of reorderings; the history of every row is tracked and scored again."""
    model = build(**shape).eval()
    generator = torch.Generator().manual_seed(2)
    src = pairs.src
    history = torch.empty(len(src) * BEAM, 0, dtype=torch.int64)
    with torch.inference_mode():
        cache = model.start_cache(encode(model, src), BEAM, max_length=40)
        for step in range(36):
            tokens = torch.randint(4, VOCAB, (len(history),), generator=generator)
            history = torch.cat([history, tokens[:, None]], dim=1)
            logits = model.decode_step(tokens, cache)
            if step % 5 == 4:
                full = score(model, src.repeat_interleave(BEAM, 0), history).logits[:, -1]
                assert_same(logits, full)
            if step in (3, 20):
                kept = torch.tensor([0, 2, 3] if step == 3 else [2, 1])
                src = src[kept]
                history = history.view(-1, BEAM, history.size(1))[kept].flatten(0, 1)
                cache.keep_sentences(kept)
            rows = torch.randint(0, BEAM, (len(src), BEAM), generator=generator)
            rows = (rows + BEAM * torch.arange(len(src))[:, None]).flatten()
            if step % 4 == 3:
                rows = torch.arange(len(rows))
            cache.reorder(rows)
            history = history[rows]


@pytest.mark.parametrize("shape", SHAPES)
def test_one_hypothesis_stands_for_all_at_the_start(build, pairs, shape):
    """Hypotheses that begin alike and then differ are scored as if each had been decoded."""
    model = build(**shape).eval()
    src = pairs.src.repeat_interleave(BEAM, 0)
    tgt = torch.randint(4, VOCAB, (len(src), 5), generator=torch.Generator().manual_seed(3))
    tgt[:, 0] = tgt[::BEAM, 0].repeat_interleave(BEAM)
    widths = []
    layer = model.decoder.layers[0]
    step = layer.step
    with torch.inference_mode():
        expected = score(model, src, tgt).logits
        cache = model.start_cache(encode(model, pairs.src), BEAM, max_length=5)
        layer.step = lambda x, pasts, context: widths.append(x.size(1)) or step(x, pasts, context)
        for position in range(5):
            assert_same(model.decode_step(tgt[:, position], cache), expected[:, position])
    assert widths == [1, *[BEAM] * 4]


def test_a_layer_called_twice_has_two_pasts(build, pairs):
    model = build().eval()
    layer = model.decoder.layers[0]
    model.decoder = Stack([layer] * 3, model.decoder.positions, None, 0.0, False, 0.0).eval()
    tgt = pairs.tgt.clamp(min=4)
    with torch.inference_mode():
        expected = score(model, pairs.src, tgt).logits
        cache = model.start_cache(encode(model, pairs.src), 1, max_length=tgt.size(1))
        for step in range(tgt.size(1)):
            assert_same(model.decode_step(tgt[:, step], cache), expected[:, step])


def test_a_copied_cache_goes_its_own_way(build, pairs):
    model = build().eval()
    with torch.inference_mode():
        cache = model.start_cache(encode(model, pairs.src), BEAM, max_length=8)
        first = torch.randint(4, VOCAB - 1, (4 * BEAM,))
        model.decode_step(first, cache)
        copied = copy.deepcopy(cache)
        model.decode_step(first + 1, copied)
        copied.reorder(torch.arange(4 * BEAM).view(4, BEAM).flip(1).flatten())
        logits = model.decode_step(first, cache)
        both = torch.stack([first, first], dim=1)
        expected = score(model, pairs.src.repeat_interleave(BEAM, 0), both).logits[:, 1]
    assert_same(logits, expected)
    assert (cache.length, copied.length) == (2, 2)


def test_a_cache_has_an_end(build, pairs):
    model = build().eval()
    with torch.inference_mode():
        cache = model.start_cache(encode(model, pairs.src), 1, max_length=2)
        for _ in range(2):
            model.decode_step(torch.full((4,), 2), cache)
        with pytest.raises(ValueError, match="2 positions"):
            model.decode_step(torch.full((4,), 2), cache)
