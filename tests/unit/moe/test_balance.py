"""Loss-free balancing: biases of sigmoid routers follow the load."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ds_seq.config.model import TransformerConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.moe.balance import BiasBalancer
from ds_seq.moe.layer import MoeFeedForward
from tests.batches import score
from tests.unit.moe.made import D, make_layer


def steps_of(layer: MoeFeedForward) -> list[int]:
    steps: list[int] = layer.gate.bias_steps.tolist()  # type: ignore[union-attr]
    return steps


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_skewed_stream_becomes_balanced_without_a_gradient(top_k: int) -> None:
    layer = make_layer("sigmoid", top_k, num_experts=8).train()
    with torch.no_grad():
        layer.gate.weight[:, 0] = torch.linspace(-0.2, 0.2, 8)  # favors the last ones
    layer.gate.bias_rate = 0.01  # type: ignore[union-attr]
    weight = layer.gate.weight.clone()
    balancer = BiasBalancer(layer)
    generator = torch.Generator().manual_seed(0)

    def worst_share(updates: int) -> float:
        """Return the largest load divided by the even load, summed over some updates."""
        load = torch.zeros(8)
        for _ in range(updates):
            x = torch.randn(1, 256, D, generator=generator)
            x[..., 0] = 5.0
            with torch.no_grad():
                stats = layer(x)[1].stats
            load += stats.load
            balancer.add([stats])
            balancer.update()
        return (load.max() / load.mean()).item()

    assert worst_share(1) > 2.0
    worst_share(100)
    assert worst_share(20) < 1.15
    assert torch.equal(layer.gate.weight, weight)


def test_a_bias_moves_one_step_an_update_by_all_its_batches() -> None:
    layer = make_layer("sigmoid", num_experts=3)
    balancer = BiasBalancer(layer)
    stats = layer(torch.randn(1, 4, D))[1].stats
    balancer.add([stats._replace(load=torch.tensor([6.0, 1.0, 2.0]))])
    balancer.add([stats._replace(load=torch.tensor([0.0, 4.0, 2.0]))])  # together 6, 5, 4
    balancer.update()
    assert steps_of(layer) == [-1, 0, 1]
    balancer.update()  # nothing counted since
    assert steps_of(layer) == [-1, 0, 1]
    balancer.add([stats._replace(load=torch.tensor([9.0, 0.0, 0.0]))])
    balancer.discard()
    balancer.update()
    assert steps_of(layer) == [-1, 0, 1]
    balancer.add([stats._replace(load=torch.zeros(3))])  # only padding
    balancer.update()
    assert steps_of(layer) == [-1, 0, 1]
    balancer.add([stats._replace(load=torch.tensor([1.0, 1.0, 7.0]))])
    balancer.update()
    assert steps_of(layer) == [0, 1, 0]


def test_each_layer_follows_its_own_load() -> None:
    """Layers of different sizes, with a layer with another router between them."""
    layers = [
        make_layer("sigmoid", num_experts=2),
        make_layer("softmax"),
        make_layer("sigmoid", num_experts=3),
    ]
    balancer = BiasBalancer(nn.ModuleList(layers))
    stats = [layer(torch.randn(1, 4, D))[1].stats for layer in layers]
    loads = ([3.0, 1.0], [4.0, 0.0, 0.0, 0.0], [0.0, 2.0, 4.0])
    balancer.add(
        [each._replace(load=torch.tensor(load)) for each, load in zip(stats, loads, strict=True)]
    )
    balancer.update()
    assert (steps_of(layers[0]), steps_of(layers[2])) == ([-1, 1], [1, 0, -1])
    with pytest.raises(AssertionError, match="each MoE layer"):
        balancer.add(stats[:2])


def test_nothing_is_kept_for_models_without_sigmoid_routers() -> None:
    layer = make_layer("softmax")
    balancer = BiasBalancer(nn.ModuleList([layer, nn.Linear(2, 2)]))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    balancer.add([layer(torch.randn(1, 4, D))[1].stats])
    balancer.update()
    balancer.discard()
    assert balancer._loads is None
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_a_router_follows_the_load_of_all_its_calls() -> None:
    """A layer called three times follows the sum of the loads; no single call would move it so."""
    config = TransformerConfig.model_validate(
        {
            **{"d_model": D, "ffn_dim": 8, "num_heads": 2, "dropout": 0.0},
            **{"encoder_layers": 2, "decoder_layers": 1},
            "moe": {"num_experts": 3, "every": 2, "placement": "encoder", "router": "sigmoid"},
        }
    )
    model = build_seq2seq(config, 11, 1, 0, seed=1, pad_id=1).train()
    dense, sparse = model.encoder.layers
    model.encoder.layers = nn.ModuleList([sparse, dense, sparse, sparse])
    layer = sparse.feed_forward
    balancer, optimizer = BiasBalancer(model), torch.optim.SGD(model.parameters(), 0.1)
    src, tgt = torch.tensor([[5, 6, 7, 2], [8, 9, 2, 1]]), torch.tensor([[2, 4, 5], [2, 6, 1]])
    for _ in range(3):
        optimizer.zero_grad()
        output = score(model, src, tgt)
        assert len(output.moe_stats) == 3
        before = torch.tensor(steps_of(layer))
        balancer.add(output.moe_stats)
        (output.logits.square().mean() + sum(output.router_losses.values())).backward()
        optimizer.step()
        balancer.update()
        total = sum(stats.load for stats in output.moe_stats)
        moved = torch.tensor(steps_of(layer)) - before
        assert torch.equal(moved, (total.mean() - total).sign().long())
    assert all(parameter.grad is not None for parameter in layer.parameters())
    loads = ([5.0, 0.0, 4.0], [0.0, 7.0, 2.0], [1.0, 1.0, 1.0])  # together 6, 8, 7
    before = torch.tensor(steps_of(layer))
    balancer.add(
        [
            each._replace(load=torch.tensor(load))
            for each, load in zip(output.moe_stats, loads, strict=True)
        ]
    )
    balancer.update()
    assert (torch.tensor(steps_of(layer)) - before).tolist() == [1, -1, 0]
