"""Several sets of parameters in one stack: who uses which, and what nobody uses."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from ds_seq.modules.multiway import Markers, Ways, by_way
from tests.batches import encode, score
from tests.unit.models.conftest import PAD, VOCAB

A, B = 21, 22
TWO = {"markers": {"a": 0, "b": 1}}


@pytest.fixture
def two_sets(build):
    """A model whose ids 21 and 22 are the markers of sets 0 and 1."""

    def make(**options):
        model = build(multiway=TWO, **options)
        model.markers.mark({A: 0, B: 1})
        return model

    return make


def _one_set(plain, model, chosen):
    """Fill a plain model with the parameters of one set of another."""
    theirs = {}
    for name, value in model.state_dict().items():
        if f".sets.{chosen}." in name:
            theirs[name.replace(f".sets.{chosen}.", ".")] = value
        elif ".sets." not in name and name != "markers.sets":
            theirs[name] = value
    plain.load_state_dict(theirs)
    return plain


def test_a_marker_holds_until_the_next_one():
    markers = Markers(3, VOCAB)
    markers.mark({7: 1, 8: 2, 9: 0})
    source = torch.tensor([[7, 4, 4, 8, 4, 9], [4, 4, 8, 4, 1, 1]])
    assert markers(source).tolist() == [[1, 1, 1, 2, 2, 0], [0, 0, 2, 2, 2, 2]]


def test_each_token_goes_through_its_set_and_back_to_its_place():
    x = torch.arange(12.0).view(2, 3, 2)
    ways = Ways.of(torch.tensor([[0, 1, 0], [3, 3, 1]]), 4)
    assert ways.counts == [2, 2, 0, 2]
    out = by_way([lambda rows, k=k: rows + 100 * k for k in range(4)], x, ways)
    added = torch.tensor([[0, 1, 0], [3, 3, 1]])[..., None] * 100
    assert torch.equal(out, x + added)


@pytest.mark.parametrize("norm_position", ["pre", "post", "subln"])
def test_a_tagged_sentence_uses_one_set_for_everything(build, two_sets, pairs, norm_position):
    options = {"norm_position": norm_position, "query_key_norm": True, "embedding_norm": True}
    model = two_sets(**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    src = pairs.src.clone()
    src[:, 0] = torch.tensor([A, B, B, A])
    src[:, 1:].masked_fill_(src[:, 1:] >= A, 5)
    mixed = score(model, src, pairs.tgt).logits
    for chosen in (0, 1):
        plain = _one_set(build(**options).eval(), model, chosen)
        rows = [row for row in range(4) if (src[row, 0] == B) == bool(chosen)]
        alone = score(plain, src[rows], pairs.tgt[rows]).logits
        width = alone.size(1)
        torch.testing.assert_close(mixed[rows][:, :width], alone, atol=1e-5, rtol=1e-5)


def test_a_split_is_where_each_sentence_has_its_marker(build, two_sets, pairs):
    """Equal sets make a plain model, wherever the splits are; others differ from there on."""
    model = two_sets().eval()
    same = {
        name: model.state_dict()[name.replace(".sets.1.", ".sets.0.")]
        for name in model.state_dict()
    }
    other = two_sets(seed=1).eval()
    other.load_state_dict(same)
    src = pairs.src.masked_fill(pairs.src >= A, 5)
    src[0, 3], src[3, 5] = B, B
    plain = _one_set(build().eval(), other, 0)
    torch.testing.assert_close(score(other, src, pairs.tgt), score(plain, src, pairs.tgt))
    first = model.encoder.layers[0].feed_forward
    ways = Ways.of(model.markers(src), 2)
    assert ways.counts == [28 - 6, 6]
    x = torch.randn(4, 7, 16)
    from ds_seq.modules.body import Context

    y = first(x, Context(ways=ways)).y
    for row, split in ((0, 3), (1, 7), (3, 5)):
        torch.testing.assert_close(y[row, :split], first.sets[0](x[row, :split][None]).y[0])
        torch.testing.assert_close(y[row, split:], first.sets[1](x[row, split:][None]).y[0])


def test_a_set_without_tokens_has_gradients_of_zero(two_sets, pairs):
    model = two_sets().train()
    src = pairs.src.masked_fill(pairs.src >= A, 5)
    score(model, src, pairs.tgt).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) == (".sets.1." not in name) or "qkv.bias" in name, name


def test_what_follows_the_padding_changes_nothing(two_sets, pairs):
    model = two_sets().eval()
    src = pairs.src.clone()
    src[:, 0] = B
    longer = torch.cat([src, torch.full((4, 3), PAD)], 1)
    torch.testing.assert_close(encode(model, longer).hidden[0, :7], encode(model, src).hidden[0])


def test_the_sets_are_drawn_apart_and_counted(build, config):
    model = build(multiway={"markers": {"x": 2, "y": 1}, "placement": "encoder"})
    plain = config().num_params(VOCAB).total
    size = config(multiway={"markers": {"x": 2, "y": 1}, "placement": "encoder"}).num_params(VOCAB)
    assert size.active == plain < size.total == sum(p.numel() for p in model.parameters())
    one, other = (model.encoder.layers[0].feed_forward.sets[k].up.weight for k in (0, 1))
    assert not torch.equal(one, other)
    assert model.decoder.find_ways is None


@pytest.mark.parametrize(
    ("markers", "said"),
    [({}, "all tokens use set 0"), ({"a": 0}, "all tokens use set 0"), ({"a": 2}, "has set 1")],
)
def test_sets_are_numbered_without_gaps(config, markers, said):
    with pytest.raises(ValidationError, match=said):
        config(multiway={"markers": markers})
