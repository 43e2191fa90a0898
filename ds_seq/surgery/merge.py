"""A layer with experts becomes a dense feed-forward: the average of its experts.

Each expert counts as much as the layer has used it: with its share of the weights that tokens gave
to the experts they visited. So an expert that nobody chooses leaves no trace, whatever probability
it has, and one that does all the work is the result. Where the weights of a token do not sum to 1
(`normalize_weights: none`), the result is scaled by their mean sum, as the layer's output is.

The average is exact for experts that are equal, and near for those that have grown out of one
feed-forward; experts that were drawn apart have hidden units in orders of their own. Fine-tuning
has to mend the rest.

Legend: ``N`` tokens, ``K`` choices per token, ``E`` experts, ``D`` model, ``F`` width of an expert,
``H`` = F, or 2F with a gated activation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ds_seq.data.batch import Batch
from ds_seq.modules.activations import find_activation
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.moe.branch import ConditionalBranch, ResidualBranch, SharedBranch
from ds_seq.moe.experts import Experts
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.moe.router import Routing, normalized
from ds_seq.surgery.prune import listening, moe_layers
from ds_seq.surgery.upcycle import DenseTensors, copy_into, tensors_of


class ExpertUse(NamedTuple):
    """What the feed-forwards of a layer were multiplied with, mean over tokens."""

    experts: Tensor
    """(E,) float64; 0 where a token did not visit the expert."""
    branch: float
    """The same of the dense feed-forward that a learned mixture sets beside the experts; 0 if there
    is none."""

    @property
    def shares(self) -> Tensor:
        """(E,) the weights of the experts among each other; they sum to 1."""
        return self.experts / self.experts.sum()


@torch.inference_mode()
def measure_use(
    model: nn.Module, batches: Iterable[Batch], names: Collection[str]
) -> dict[str, ExpertUse]:
    """How much a model uses each of its experts on some text.

    Args:
        model: in evaluation mode.
        batches: at least one, on the model's device.
        names: of the layers with experts that are asked for, see `moe_layers`.

    Returns:
        The use by layer.
    """
    layers = moe_layers(model)
    heard = {name: _Listener(layers[name]) for name in names}
    with listening(model, {name: listener.add for name, listener in heard.items()}):
        for batch in batches:
            model(batch.inputs)
    return {name: listener.use() for name, listener in heard.items()}


class _Listener:
    """Sums up what one layer does. Weights are those of a layer that drops nothing."""

    def __init__(self, layer: MoeFeedForward) -> None:
        self._layer = layer
        self._experts = torch.zeros(layer.num_experts, dtype=torch.float64)
        self._branch = 0.0
        self._tokens = 0

    def add(self, routing: Routing, rows: Tensor) -> None:
        """Count one forward; see `listening`."""
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
    """(N, 1) float64: how much of the layer's output is that of the experts."""
    if isinstance(branch, ResidualBranch):
        return branch.mix(rows).double().softmax(-1)[:, :1]
    if isinstance(branch, ConditionalBranch):
        return branch.mix(rows).double().sigmoid()
    return rows.new_ones(len(rows), 1, dtype=torch.float64)


@torch.no_grad()
def merge_experts(layer: MoeFeedForward, use: ExpertUse) -> FeedForward:
    """The dense feed-forward in place of a layer with experts.

    A dense branch that a learned mixture sets beside the experts is averaged in like one more of
    them. Shared experts, which every token visits with weight 1, keep their hidden units beside the
    averaged ones: there nothing is lost, and the result is wider.

    Args:
        layer: holds all of its experts.
        use: of this layer.

    Returns:
        A new feed-forward, in float32 on the CPU.
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
        dense = _side_by_side(dense, tensors_of(branch.dense), experts.activation)
    d_model, width = dense.down.shape
    merged = FeedForward(d_model, width, experts.activation, experts.dropout)
    copy_into(merged, dense)
    return merged


def _expert(experts: Experts, index: int) -> DenseTensors:
    up, down = experts.maps
    return DenseTensors(up[index], experts.b1[index, 0], down[index], experts.b2[index, 0])


def _average(parts: list[DenseTensors], weights: list[float]) -> DenseTensors:
    """The feed-forward whose tensors are averages, times the sum of ``weights``."""
    total = sum(weights)
    # in float64, so that equal experts give just that expert
    means = []
    for tensors in zip(*parts, strict=True):
        mean = torch.zeros_like(tensors[0], dtype=torch.float64)
        for tensor, weight in zip(tensors, weights, strict=True):
            mean.add_(tensor.double(), alpha=weight / total)
        means.append(mean)
    dense = DenseTensors(*means)
    return dense._replace(down=dense.down * total, down_bias=dense.down_bias * total)


def _side_by_side(one: DenseTensors, other: DenseTensors, activation: str) -> DenseTensors:
    """The feed-forward with the hidden units of both: its output is the sum of theirs."""
    parts = find_activation(activation).num_parts  # all gates come before all values

    def rows(a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(a.chunk(parts), b.chunk(parts), strict=True)
        return torch.cat([half for pair in pairs for half in pair])

    return DenseTensors(
        rows(one.up, other.up),  # (H, D)
        rows(one.up_bias, other.up_bias),
        torch.cat([one.down, other.down], dim=1),  # (D, F)
        one.down_bias + other.down_bias,
    )
