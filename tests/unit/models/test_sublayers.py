"""Layers with sub-layers other than ours: a new mixer or an adapter is one more entry."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ds_seq.models.init import initialize
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.models.stack import SubLayer, TransformerLayer
from ds_seq.modules.attention import SelfAttention
from ds_seq.modules.body import Body, BodyOutput, Context
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.modules.kv_cache import BeamPaths, KeptSentences, KeyValueBuffer
from ds_seq.modules.linear import Linear
from ds_seq.modules.residual import Residual
from ds_seq.moe.layer import MoeFeedForward
from tests.batches import encode, score

VOCAB, D, HEADS = 23, 16, 2
DECAYS = torch.linspace(0.5, 0.95, D)
SLOPES = torch.tensor([0.5, 0.125])


class DecayState:
    """The state of a `Decay`: one vector per hypothesis, (N, D)."""

    def __init__(self, state: Tensor, beam: int) -> None:
        self.state = state
        self.beam = beam

    def reorder(self, rows: Tensor) -> None:
        """See `Past`."""
        self.state = self.state.index_select(0, rows)

    def keep_sentences(self, kept: KeptSentences) -> None:
        """See `Past`."""
        self.state = kept.apply(self.state.unflatten(0, (-1, self.beam))).flatten(0, 1)


class Decay(nn.Module):
    """A recurrent mixer, s_t = decay * s_(t-1) + map(x_t); stands for retention or an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.map = Linear(D, D)

    def forward(self, x: Tensor, context: Context) -> BodyOutput:
        """See `Body`."""
        states, state = [], torch.zeros(D)
        for token in self.map(x).unbind(1):
            state = DECAYS * state + token
            states.append(state)
        return BodyOutput(torch.stack(states, 1))

    def start_past(self, context: Context, paths: BeamPaths) -> DecayState:
        """See `Body`."""
        return DecayState(torch.zeros(paths.num_rows, D), paths.beam)

    def step(self, x: Tensor, past: DecayState, context: Context) -> Tensor:
        """See `Body`."""
        past.state = DECAYS * past.state + self.map(x).flatten(0, 1)
        return past.state.view_as(x)


class BiasedAttention(nn.Module):
    """Self-attention with a bias by distance (like ALiBi, arXiv:2108.12409)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = SelfAttention(D, HEADS, 0.0, causal=True)

    def forward(self, x: Tensor, context: Context) -> BodyOutput:
        """See `Body`."""
        places = torch.arange(x.size(1))
        distances = places[:, None] - places  # (T, T); later keys are masked anyway
        bias = -SLOPES[:, None, None] * distances
        output: BodyOutput = self.attention(x, context._replace(position_bias=bias))
        return output

    def start_past(self, context: Context, paths: BeamPaths) -> KeyValueBuffer:
        """See `Body`; tracks the positions of keys."""
        paths.track_positions()
        return self.attention.start_past(context, paths)

    def step(self, x: Tensor, past: KeyValueBuffer, context: Context) -> Tensor:
        """See `Body`."""
        # the key of this step is appended to columns that are there already
        distances = past.length - past.key_positions[:, None, None]  # (B, 1, 1, C)
        bias = -SLOPES[:, None, None] * distances
        return self.attention.step(x, past, context._replace(position_bias=bias))


def with_mixer(model: Seq2SeqTransformer, mixer: Callable[[], nn.Module]) -> Seq2SeqTransformer:
    """Return the model with other mixers instead of the decoder's self-attention."""
    for layer in model.decoder.layers:
        layer.self_attention = mixer()
    initialize(model, 3)
    return model.eval()


def walk(model: Seq2SeqTransformer, src: Tensor, beam: int, length: int) -> int:
    """Decode along a random walk of hypotheses and sentences; compare with the whole forward.

    Returns:
        How often the cache has moved keys.
    """
    generator = torch.Generator().manual_seed(beam)
    history = torch.empty(len(src) * beam, 0, dtype=torch.int64)
    with torch.inference_mode():
        cache = model.start_cache(encode(model, src), beam, max_length=length)
        for step in range(length):
            tokens = torch.randint(4, VOCAB, (len(history),), generator=generator)
            history = torch.cat([history, tokens[:, None]], dim=1)
            logits = model.decode_step(tokens, cache)
            if step % 7 == 6 or step == length - 1:
                full = score(model, src.repeat_interleave(beam, 0), history).logits[:, -1]
                torch.testing.assert_close(logits, full, atol=1e-5, rtol=1e-5)
            if step in (3, 30):
                kept = torch.tensor([0, 3, 2] if step == 3 else [2, 1])
                src = src[kept]
                history = history.view(-1, beam, history.size(1))[kept].flatten(0, 1)
                cache.keep_sentences(kept)
            # mostly one winner, as in real searches: then most keys die and are dropped
            rows = torch.randint(0, min(beam, 2), (len(src), beam), generator=generator)
            rows = (rows + beam * torch.arange(len(src))[:, None]).flatten()
            cache.reorder(rows)
            history = history[rows]
    if beam > 1:
        assert cache.paths.used < length * beam, "no key was dropped: the walk proves too little"
    return cache.paths.generation


@pytest.mark.parametrize("beam", [1, 2, 3, 4])
@pytest.mark.parametrize("mixer", [Decay, BiasedAttention])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_new_mixer_decodes_step_by_step(build, pairs, mixer, beam, norm):
    model = with_mixer(build(norm_position=norm), mixer)
    moves = walk(model, pairs.src, beam, 50)
    assert moves >= 2 if mixer is BiasedAttention else moves == 0, "only keys need to be moved"


def test_a_state_that_stays_with_its_row_is_wrong(build, pairs, monkeypatch):
    """The walk above distinguishes bodies that follow their hypotheses from those that do not."""
    model = with_mixer(build(), Decay)
    monkeypatch.setattr(DecayState, "reorder", lambda self, rows: None)
    with pytest.raises(AssertionError, match="not close"):
        walk(model, pairs.src, 3, 50)


def test_a_bias_by_column_instead_of_position_is_wrong(build, pairs, monkeypatch):
    model = with_mixer(build(), BiasedAttention)
    by_column = property(lambda self: torch.arange(self._paths.used)[None] // self._paths.beam)
    monkeypatch.setattr(KeyValueBuffer, "key_positions", by_column)
    with pytest.raises(AssertionError, match="not close"):
        walk(model, pairs.src, 3, 50)


def test_a_copied_cache_has_separate_states(build, pairs):
    model = with_mixer(build(), Decay)
    with torch.inference_mode():
        cache = model.start_cache(encode(model, pairs.src), 2, max_length=4)
        first = torch.randint(4, VOCAB - 1, (8,))
        model.decode_step(first, cache)
        copied = copy.deepcopy(cache)
        copied.reorder(torch.arange(8).view(4, 2).flip(1).flatten())
        model.decode_step(first, copied)
        both = torch.stack([first, first + 1], dim=1)
        expected = score(model, pairs.src.repeat_interleave(2, 0), both).logits[:, 1]
        logits = model.decode_step(first + 1, cache)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def layer_of(**bodies: Body) -> TransformerLayer:
    sublayers = {
        name: SubLayer(Residual(nn.LayerNorm(D), 0.0, pre_norm=True, drop_path=0.0), body)
        for name, body in bodies.items()
    }
    return TransformerLayer(sublayers)


def test_parameters_are_called_after_the_sublayers() -> None:
    layer = layer_of(
        self_attention=SelfAttention(D, 2, 0.0, False), adapter=FeedForward(D, 4, "relu", 0.0)
    )
    assert [name for name, _ in layer.named_children()] == [
        "self_attention",
        "self_attention_residual",
        "adapter",
        "adapter_residual",
    ]


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_an_adapter_is_one_more_entry(build, pairs, stack):
    """A layer with a fourth sub-layer applies all its sub-layers, and decodes like any other."""
    model = build(norm_position="pre")
    layers = getattr(model, stack).layers
    old = layers[1]
    bodies = {name: old.get_submodule(name) for name in old.names}
    layers[1] = layer_of(**bodies, adapter=FeedForward(D, 4, "gelu", 0.0))
    initialize(model, 3)
    model.eval()
    walk(model, pairs.src, 3, 50)
    layer, context = model.encoder.layers[1], Context()
    x = torch.randn(2, 5, D)
    y = x
    for name in layer.names:
        residual = layer.get_submodule(f"{name}_residual")
        y = residual.leave(y, layer.get_submodule(name)(residual.enter(y), context).y)
    torch.testing.assert_close(layer(x, context).hidden, y)


def test_sublayers_that_show_nothing_leave_no_gap(build, pairs):
    """Maps are returned by the layers that have them."""
    model = build()
    model.decoder.layers[0].self_attention = Decay()
    layers = score(model, *pairs, capture="attention").layers
    counts = [len(maps) for maps in layers[2:]]
    assert counts == [2, 1, 2]


def test_a_layer_may_have_two_sparse_sublayers(build, pairs):
    model = build(moe={"num_experts": 4, "top_k": 2, "every": 2})
    sparse = model.encoder.layers[1].feed_forward
    assert isinstance(sparse, MoeFeedForward)
    attention = model.encoder.layers[0].self_attention
    model.encoder.layers[0] = layer_of(self_attention=attention, first=sparse, second=sparse)
    output = score(model, *pairs)
    assert model.moe_calls() == [sparse, sparse, sparse, model.decoder.layers[1].feed_forward]
    assert len(output.moe_stats) == 4
