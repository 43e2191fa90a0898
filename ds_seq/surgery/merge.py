"""Merge the experts of a layer into one dense feed-forward, their weighted average.

Each expert is weighted by its use: its share of the routing weights that tokens gave to the experts
they visited. An expert that no token chooses therefore has no effect, whatever its probability, and
an expert that receives all tokens is the result. Where the weights of a token do not sum to 1
(`normalize_weights: none`), the result is scaled by their mean sum, like the layer's output.

The average is exact for equal experts and a good approximation for experts that were upcycled from
one feed-forward. Experts with independent initial values have differently ordered hidden units;
fine-tuning has to make up for that.

Shapes: `N` tokens, `K` choices per token, `E` experts, `D` model width, `F` width of an expert,
`H` = F, or 2F with a gated activation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ds_seq.data.batch import Batch
from ds_seq.errors import UserError
from ds_seq.modules.activations import find_activation
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.modules.linear import Linear
from ds_seq.moe.branch import ConditionalBranch, ResidualBranch, SharedBranch
from ds_seq.moe.expert_loop import bias_of
from ds_seq.moe.experts import Experts
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.moe.router import Routing, normalized
from ds_seq.surgery.prune import moe_layers, routing_callbacks
from ds_seq.surgery.upcycle import DenseTensors, copy_into, tensors_of


class ExpertUse(NamedTuple):
    """Mean weights over tokens by which the outputs of a layer's feed-forwards were multiplied."""

    experts: Tensor
    """(E,) float64 mean weight of each expert; a token that did not visit it counts as 0."""
    branch: float
    """Mean weight of the dense branch in a learned mixture with the experts; 0 if there is none."""

    @property
    def shares(self) -> Tensor:
        """(E,) weights of the experts relative to each other, with sum 1."""
        return self.experts / self.experts.sum()


@torch.inference_mode()
def measure_use(
    model: nn.Module, batches: Iterable[Batch], names: Collection[str]
) -> dict[str, ExpertUse]:
    """Measure how much a model uses each of its experts on some text.

    Args:
        model: the model, in evaluation mode.
        batches: at least one, on the model's device.
        names: names of the layers to measure, see `moe_layers`.

    Returns:
        The use of the experts by name of the layer.
    """
    layers = moe_layers(model)
    counters = {name: _UseCounter(layers[name]) for name in names}
    with routing_callbacks(model, {name: counter.add for name, counter in counters.items()}):
        for batch in batches:
            model(batch.inputs)
    return {name: counter.use() for name, counter in counters.items()}


def equal_use(layer: MoeFeedForward) -> ExpertUse:
    """Return the use of a layer's experts in which each has the same weight, without any text.

    Raises:
        UserError: how much the experts count for can only be measured, because the weights of a
            token do not sum to 1 or a learned mixture shares them with a dense branch.
    """
    is_mixed = isinstance(layer.branch, ResidualBranch | ConditionalBranch)
    if is_mixed or layer.normalize_weights == "none":
        reason = (
            "a dense branch has a learned share of the output"
            if is_mixed
            else "normalize_weights is none"
        )
        raise UserError(
            f"model.moe: {reason}, so that text has to show how much the experts count for; add "
            "--data SHARDS"
        )
    share = 1.0 / layer.num_experts
    return ExpertUse(torch.full((layer.num_experts,), share, dtype=torch.float64), 0.0)


class _UseCounter:
    """Sums the weights of one layer's experts, ignoring capacity limits."""

    def __init__(self, layer: MoeFeedForward) -> None:
        self._layer = layer
        self._experts = torch.zeros(layer.num_experts, dtype=torch.float64)
        self._branch = 0.0
        self._tokens = 0

    def add(self, routing: Routing, rows: Tensor) -> None:
        """Add the routing of one forward; see `routing_callbacks`."""
        weights = routing.weights.double()  # (N, K); 0 where a choice is not valid
        if self._layer.normalize_weights != "none":
            weights = normalized(weights)
        share = _share(self._layer.branch, rows)  # (N, 1)
        used = routing.experts.flatten(), (weights * share).flatten()
        self._experts += torch.bincount(*used, minlength=len(self._experts)).cpu()
        self._branch += float((1.0 - share).sum())
        self._tokens += len(rows)

    def use(self) -> ExpertUse:
        return ExpertUse(self._experts / self._tokens, self._branch / self._tokens)


def _share(branch: nn.Module | None, rows: Tensor) -> Tensor:
    """Return the experts' share (N, 1), float64, of the layer's output."""
    if isinstance(branch, ResidualBranch):
        return branch.mix(rows).double().softmax(-1)[:, :1]
    if isinstance(branch, ConditionalBranch):
        return branch.mix(rows).double().sigmoid()
    return rows.new_ones(len(rows), 1, dtype=torch.float64)


@torch.no_grad()
def merge_experts(layer: MoeFeedForward, use: ExpertUse) -> FeedForward:
    """Return a dense feed-forward that replaces a layer with experts.

    A dense branch in a learned mixture with the experts is averaged like another expert. Shared
    experts, which every token visits with weight 1, keep their hidden units next to the averaged
    ones: this loses nothing, and the result is wider.

    Args:
        layer: the layer, holding all of its experts.
        use: measured use of this layer's experts.

    Returns:
        A new feed-forward, in float32 on the CPU.

    Raises:
        UserError: the layer has shared experts with a norm of their hidden units.
    """
    experts, branch = layer.experts, layer.branch
    assert experts.num_local == layer.num_experts, "experts on other ranks cannot be averaged"
    parts = [_expert(experts, index) for index in range(layer.num_experts)]
    weights = use.experts.tolist()
    if isinstance(branch, ResidualBranch | ConditionalBranch):
        parts.append(tensors_of(branch.dense))
        weights.append(use.branch)
    dense = _average(parts, weights)
    if isinstance(branch, SharedBranch):
        dense = _concatenate(dense, tensors_of(branch.dense), experts.activation)
    d_model, width = dense.down.shape
    norm = None if experts.inner_norm is None else experts.inner_norm.one()
    linear = partial(Linear, bias=dense.up_bias is not None)
    merged = FeedForward(d_model, width, experts.activation, experts.dropout, norm, linear)
    copy_into(merged, dense)
    return merged


def _expert(experts: Experts, index: int) -> DenseTensors:
    up, down = experts.maps
    norm: tuple[Tensor, ...] = ()
    if experts.inner_norm is not None:
        norm = tuple(stacked[index, 0] for stacked in experts.inner_norm.parameters())
    return DenseTensors(
        up[index], bias_of(experts.b1, index), down[index], bias_of(experts.b2, index), norm
    )


def _average(parts: list[DenseTensors], weights: list[float]) -> DenseTensors:
    """Return the weighted average of the tensors, scaled by the sum of `weights`."""
    total = sum(weights)

    def mean(tensors: Iterable[Tensor]) -> Tensor:
        # in float64, so that averaging equal experts returns exactly that expert
        shares = zip(tensors, weights, strict=True)
        return cast(Tensor, sum(each.double() * (weight / total) for each, weight in shares))

    def mean_bias(biases: list[Tensor | None]) -> Tensor | None:
        given = [bias for bias in biases if bias is not None]
        return mean(given) if given else None

    down_bias = mean_bias([part.down_bias for part in parts])
    return DenseTensors(
        mean(part.up for part in parts),
        mean_bias([part.up_bias for part in parts]),
        mean(part.down for part in parts) * total,
        None if down_bias is None else down_bias * total,
        tuple(map(mean, zip(*(part.inner_norm for part in parts), strict=True))),
    )


def _concatenate(first: DenseTensors, second: DenseTensors, activation: str) -> DenseTensors:
    """Concatenate the hidden units of two feed-forwards, which adds their outputs."""
    if first.inner_norm:
        raise UserError(
            "model.moe.shared_experts: with norm_position subln, experts and shared experts have a "
            "norm each and cannot become one feed-forward; keep the experts"
        )
    parts = find_activation(activation).num_parts  # all gates come before all values

    def rows(a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(a.chunk(parts), b.chunk(parts), strict=True)
        return torch.cat([half for pair in pairs for half in pair])

    up_bias = down_bias = None
    if first.up_bias is not None and second.up_bias is not None:
        up_bias = rows(first.up_bias, second.up_bias)
    if first.down_bias is not None and second.down_bias is not None:
        down_bias = first.down_bias + second.down_bias
    up = rows(first.up, second.up)  # (H, D)
    down = torch.cat([first.down, second.down], dim=1)  # (D, F)
    return DenseTensors(up, up_bias, down, down_bias)
