"""Hidden states and attention maps of layers, on request."""

from __future__ import annotations

import math

import pytest
import torch

from ds_seq.modules.body import Context
from ds_seq.modules.rotary import RotaryPositions
from tests.batches import encode, score
from tests.unit.models.sections import ROUTERS

PAD, VOCAB = 1, 23
SHAPES = [
    {"positions": "sinusoidal", "norm_position": "post"},
    {"positions": "learned", "norm_position": "pre"},
    {"positions": "rotary", "norm_position": "pre"},
    {"moe": ROUTERS["softmax"]},
    {"moe": {**ROUTERS["language"], "residual": True}},
    {"moe": ROUTERS["expert_choice"]},
]


def long_pairs():
    """A batch with too many queries for the short kernel: 3 sources of length 19, targets of 15."""
    generator = torch.Generator().manual_seed(9)
    src = torch.randint(4, VOCAB, (3, 19), generator=generator)
    tgt = torch.randint(4, VOCAB, (3, 15), generator=generator)
    src[1, 13:], tgt[2, 9:] = PAD, PAD
    return src, tgt


def everything(layers):
    """Return all tensors of `LayerOutputs`, in order."""
    return [tensor for group in layers for tensor in group]


@pytest.mark.parametrize("capture", ["hidden", "attention"])
@pytest.mark.parametrize("shape", SHAPES)
def test_asking_changes_no_score(build, pairs, shape, capture):
    for mode in (True, False):
        model = build(encoder_layers=3, **shape).train(mode)
        for src, tgt in (tuple(pairs), long_pairs()):
            plain, full = score(model, src, tgt), score(model, src, tgt, capture=capture)
            real = tgt != PAD
            torch.testing.assert_close(full.logits[real], plain.logits[real], atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(full.router_losses, plain.router_losses)
            assert plain.layers is None


def test_only_requested_outputs_are_returned(build, pairs):
    model = build(encoder_layers=3, decoder_layers=2)
    hidden = score(model, *pairs, capture="hidden").layers
    assert [len(group) for group in hidden] == [3, 2, 0, 0, 0]
    both = score(model, *pairs, capture="attention").layers
    assert [len(group) for group in both] == [3, 2, 3, 2, 2]
    rows, source, target = *pairs.src.shape, pairs.tgt.size(1)
    shapes = [(rows, source, 16), (rows, target, 16)]
    shapes += [(rows, 2, source, source), (rows, 2, target, target), (rows, 2, target, source)]
    for group, shape in zip(both, shapes, strict=True):
        assert {tuple(tensor.shape) for tensor in group} == {shape}


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_states_are_what_leaves_each_layer(build, pairs, norm):
    model = build(norm_position=norm, encoder_layers=3, decoder_layers=3).eval()
    layers = score(model, *pairs, capture="hidden").layers
    mask = pairs.src != PAD
    added = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)[:, None, None]
    context = Context(mask, attention_mask=added)
    for index in (1, 2):
        ours = model.encoder.layers[index](layers.encoder[index - 1], context).hidden
        torch.testing.assert_close(ours, layers.encoder[index])
    encoded = encode(model, pairs.src).hidden
    context = Context(source=encoded, source_mask=added)
    for index in (1, 2):
        ours = model.decoder.layers[index](layers.decoder[index - 1], context).hidden
        torch.testing.assert_close(ours, layers.decoder[index])
    # the last one, too, and before the last norm
    finish = model.encoder.final_norm or (lambda x: x)
    assert torch.equal(finish(layers.encoder[2]), encoded)
    finish = model.decoder.final_norm or (lambda x: x)
    logits = model.target_embedding(finish(layers.decoder[2]), project=True)
    everywhere = torch.ones_like(pairs.tgt, dtype=torch.bool)
    torch.testing.assert_close(logits, score(model, *pairs, target_mask=everywhere).logits)


@pytest.mark.parametrize("shape", SHAPES)
def test_maps_are_distributions_over_what_may_be_seen(build, pairs, shape):
    model = build(**shape)
    for src, tgt in (tuple(pairs), long_pairs()):
        layers = score(model, src, tgt, capture="attention").layers
        padding = (src == PAD)[:, None, None]
        future = torch.ones(tgt.size(1), tgt.size(1)).triu(1).bool()
        for maps, hidden in (
            (layers.encoder_attention, padding),
            (layers.decoder_attention, future),
            (layers.cross_attention, padding),
        ):
            for weights in maps:
                torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
                masked = hidden.expand(weights.shape)
                assert not weights[masked].any()
                assert (weights[~masked] > 0).all()


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_maps_are_the_softmax_of_the_scores(build, pairs, positions):
    model = build(positions=positions, norm_position="post").eval()
    layers = score(model, *pairs, capture="attention").layers
    rows = pairs.src != PAD
    attention = model.decoder.layers[1].self_attention
    x = layers.decoder[0]
    query, key, _ = (
        part.unflatten(-1, (2, 8)).transpose(1, 2)
        for part in attention.qkv(x).chunk(3, dim=-1)  # (B, T, D) -> (B, H, T, Dh)
    )
    if positions == "rotary":
        query, key = RotaryPositions(8, 10000.0, False)(query, key, 0, x.size(1))
    scores = query @ key.transpose(-1, -2) / math.sqrt(8)
    scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
    torch.testing.assert_close(layers.decoder_attention[1], scores.softmax(-1))
    # cross-attention of the last layer reads what its self-attention leaves
    layer = model.decoder.layers[1]
    x = layer.self_attention_residual.leave(x, attention(x)[0])
    query, key = (
        part.unflatten(-1, (2, 8)).transpose(1, 2)
        for part in (
            layer.cross_attention.query(x),
            layer.cross_attention.key_value(encode(model, pairs.src).hidden).chunk(2, dim=-1)[0],
        )
    )
    scores = query @ key.transpose(-1, -2) / math.sqrt(8)
    scores = scores.masked_fill(~rows[:, None, None], -math.inf)
    torch.testing.assert_close(layers.cross_attention[1], scores.softmax(-1))


def test_maps_are_float32_and_states_have_the_models_precision(build, pairs):
    layers = score(build().bfloat16(), *pairs, capture="attention").layers
    assert {state.dtype for state in layers.encoder + layers.decoder} == {torch.bfloat16}
    maps = layers.encoder_attention + layers.decoder_attention + layers.cross_attention
    assert {weights.dtype for weights in maps} == {torch.float32}
    for weights in maps:  # not rounded on the way
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_dropout_leaves_the_maps_alone_and_not_the_layer(build, pairs):
    model = build(attention_dropout=0.5).train()
    one, two = (score(model, *pairs, capture="attention").layers for _ in range(2))
    assert torch.equal(one.encoder_attention[0], two.encoder_attention[0])
    assert torch.equal(one.decoder_attention[0], two.decoder_attention[0])
    assert not torch.equal(one.encoder[0], two.encoder[0])
    assert not torch.equal(one.decoder[0], two.decoder[0])
    with torch.no_grad():
        still = score(model.eval(), *pairs, capture="attention").layers
    torch.testing.assert_close(one.encoder_attention[0], still.encoder_attention[0])


@pytest.mark.parametrize("moe", [None, ROUTERS["softmax"]])
def test_checkpointing_shows_the_same_and_has_the_same_gradients(build, pairs, moe):
    results = []
    for checkpointing in (False, True):
        model = build(
            activation_checkpointing=checkpointing, dropout=0.2, attention_dropout=0.3, moe=moe
        )
        torch.manual_seed(5)
        output = score(model, *pairs, capture="attention")
        loss = output.logits.square().mean()
        for index, tensor in enumerate(everything(output.layers)):
            loss = loss + (index + 1) * tensor.square().mean()
        loss.backward()
        results.append((loss, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("group", "parts"),
    [
        (0, ["encoder.layers.1.feed_forward", "encoder.layers.1.self_attention.output"]),
        (1, ["decoder.layers.1.feed_forward", "decoder.layers.1.cross_attention.output"]),
        (2, ["encoder.layers.1.self_attention.qkv"]),
        (3, ["decoder.layers.1.self_attention.qkv"]),
        (4, ["decoder.layers.1.cross_attention.query", "encoder.layers.1.feed_forward"]),
    ],
)
def test_gradients_of_what_layers_show_reach_the_last_layers(build, pairs, group, parts):
    model = build()
    tensors = score(model, *pairs, capture="attention").layers[group]
    tensors[-1].square().sum().backward()
    for part in parts:
        for parameter in model.get_submodule(part).parameters():
            if parameter.ndim > 1:
                assert parameter.grad is not None and parameter.grad.abs().max() > 0, part


def test_a_layer_that_is_called_twice_shows_itself_twice(build, pairs):
    model = build().eval()
    model.encoder.layers[1] = model.encoder.layers[0]
    layers = score(model, *pairs, capture="attention").layers
    assert not torch.equal(layers.encoder[0], layers.encoder[1])
    assert not torch.equal(layers.encoder_attention[0], layers.encoder_attention[1])


def test_encoding_shows_the_same(build, pairs):
    model = build().eval()
    layers = score(model, *pairs, capture="attention").layers
    encoded = encode(model, pairs.src, "attention")
    torch.testing.assert_close(encoded.states, layers.encoder)
    torch.testing.assert_close(encoded.attention, layers.encoder_attention)
    assert encode(model, pairs.src).states == () == encode(model, pairs.src, "hidden").attention
