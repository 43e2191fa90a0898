"""Routing by a fixed hash of the token."""

from __future__ import annotations

import pytest
import torch

from ds_seq.modules.body import Context
from ds_seq.moe.hash import TokenHashRouter
from tests.unit.moe.made import D, make_layer


@pytest.mark.parametrize(("count", "top_k"), [(4, 1), (4, 3), (16, 2), (5, 5)])
def test_equal_numbers_of_tokens_choose_each_expert(count: int, top_k: int) -> None:
    tokens = torch.arange(40 * count)
    experts = TokenHashRouter(count, top_k, 0).experts_of(tokens)
    assert experts.shape == (len(tokens), top_k)
    for place in range(top_k):
        for block in experts[:, place].view(-1, count).tolist():
            assert sorted(block) == list(range(count)), "a block is dealt out to all experts"
    assert all(len(set(row)) == top_k for row in experts.tolist())


def test_choices_depend_on_the_token_and_the_layer_alone() -> None:
    tokens = torch.randint(30_000, (500,))
    router, x = TokenHashRouter(16, 2, 3), torch.randn(500, D)
    order = torch.randperm(500)
    first = router(x, tokens=tokens).experts
    assert torch.equal(router(torch.randn(500, D), tokens=tokens[order]).experts, first[order])
    other = TokenHashRouter(16, 2, 4)(x, tokens=tokens).experts
    equal = (other == first).float().mean()
    assert equal < 0.2, "layers share no more than chance: 1 in 16"


def test_choices_in_different_blocks_are_independent() -> None:
    """A pair of experts is about as frequent as any other: neighbours are not tied together."""
    experts = TokenHashRouter(8, 2, 0).experts_of(torch.arange(8 * 2000))
    pairs = torch.bincount(experts[:, 0] * 8 + experts[:, 1], minlength=64).view(8, 8)
    off_diagonal = pairs[~torch.eye(8, dtype=torch.bool)]
    assert pairs.diagonal().sum() == 0
    assert off_diagonal.min() > 0.8 * 16000 / 56 and off_diagonal.max() < 1.2 * 16000 / 56


def test_weights_are_equal_and_padding_is_not_routed() -> None:
    layer = make_layer(TokenHashRouter(4, 2, 0)).eval()
    x, tokens = torch.randn(2, 3, D), torch.tensor([[5, 9, 1], [7, 1, 1]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    out = layer(x, Context(mask, tokens=tokens))
    assert out.aux.stats.tokens == 3 and not out.y[~mask].any()
    routing = layer.gate(x.view(-1, D), mask.view(-1).nonzero().squeeze(1), tokens=tokens.view(-1))
    assert (routing.weights == 0.5).all() and len(routing.experts) == 3
    torch.testing.assert_close(routing.probabilities.sum(1), torch.ones(3))
    assert routing.losses.keys() == {"load_balance", "router_z"}


def test_without_tokens_it_says_what_it_needs() -> None:
    with pytest.raises(RuntimeError, match="needs the number of each token"):
        make_layer(TokenHashRouter(4, 1, 0))(torch.randn(1, 2, D))
