"""The feed-forward networks of all experts held by this rank.

GPUs compute them by grouped matrix products, CPUs by kernels in C or expert by expert.

Shapes: R rows sorted by expert, D model, F feed-forward width, H = F, or 2F with
a gated activation, E_local experts held here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ds_seq.modules.activations import find_activation
from ds_seq.modules.linear import linear
from ds_seq.modules.packed import Packed, pack
from ds_seq.modules.residual import dropout, dropout_noise
from ds_seq.moe.expert_loop import NOT_PACKED, PackedNet, bias_of, expert_loop
from ds_seq.moe.few_rows import few_rows, has_kernels, serves
from ds_seq.moe.grouped import grouped_linear, use_grouped_kernel

if TYPE_CHECKING:
    from ds_seq.modules.bitlinear import Bits, RoundedParameter


class Experts(nn.Module):
    """E_local feed-forward networks `activation(x w1 + b1) w2^T + b2`.

    Column f of an expert's w1 (D, H) and of its w2 (D, F) belongs to hidden unit f. With this
    layout, oneDNN, which copies one factor of a product, copies the narrow one when it computes
    their gradients. With a gated activation, the first map returns gate and value, F columns each,
    as in the dense feed-forward.

    Args:
        d_model: width of the model, D.
        ffn_dim: feed-forward width, F.
        num_local: number of experts held by this rank, E_local.
        first_expert: global index of the first expert held by this rank. Every expert draws its
            parameters from (seed, layer, global index), so that the initial model does not depend
            on the layout of the ranks.
        activation: name of an entry of `ds_seq.modules.activations`.
        dropout: probability of dropping a hidden activation in training.
        seed: seed that combines model and layer, see `expert_generator`.
        inner_norm: norm of the hidden activations of one expert (..., F), after dropout (SubLN), or
            None. Every expert has parameters like its own.
        bits: how weights and inputs are rounded, see `ds_seq.modules.bitlinear`, or None.
        bias: whether the maps have biases.

    Raises:
        ValueError: unknown activation.
    """

    turned_since_format_1 = ("w2",)
    """Parameters whose matrices are transposed in format 1 of checkpoints."""

    _packed: list[PackedNet] | None = None
    _scales: tuple[Tensor, Tensor] | None = None

    def __init__(
        self,
        d_model: int,
        ffn_dim: int,
        num_local: int,
        first_expert: int,
        activation: str,
        dropout: float,
        seed: int,
        inner_norm: nn.Module | None = None,
        bits: Bits | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self._activation = find_activation(activation)
        self.num_local, self.first_expert = num_local, first_expert
        self.activation, self.dropout, self.seed = activation, dropout, seed
        up_dim = self._activation.num_parts * ffn_dim
        self.w1 = nn.Parameter(torch.empty(num_local, d_model, up_dim))
        # one bias matrix per expert, so that an optimizer that factors its state by rows and
        # columns (Adafactor) never mixes experts
        self.b1 = nn.Parameter(torch.empty(num_local, 1, up_dim)) if bias else None
        self.w2 = nn.Parameter(torch.empty(num_local, d_model, ffn_dim))
        self.b2 = nn.Parameter(torch.empty(num_local, 1, d_model)) if bias else None
        self.bits, self.up_widths = bits, [ffn_dim] * self._activation.num_parts
        self._has_kernels = has_kernels()
        self.lora: nn.Module | None = None  # `ds_seq.moe.lora.ExpertsLora`
        self.inner_norm = None
        if inner_norm is not None:
            self.inner_norm = StackedNorms(inner_norm, num_local)
        self.draw_parameters()

    def scale_parameters(self, factor: float) -> None:
        """Scale both initial maps, see `ds_seq.models.init`."""
        self.w1.mul_(factor)
        self.w2.mul_(factor)

    @torch.no_grad()
    def draw_parameters(self) -> None:
        """Draw Xavier-uniform weights and zero biases from (seed, global expert index) only."""
        _, d_model, ffn_dim = self.w2.shape
        for local in range(self.num_local):
            generator = expert_generator(self.seed, self.first_expert + local)
            # the bound of one map D -> F, even if a gated activation uses two side by side
            bound = (6.0 / (d_model + ffn_dim)) ** 0.5
            self.w1[local].uniform_(-bound, bound, generator=generator)
            self.w2[local].uniform_(-bound, bound, generator=generator)
        for bias in (self.b1, self.b2):
            if bias is not None:
                bias.zero_()

    def pack(self, int8: bool = False) -> None:
        """Use packed copies of all maps from now on, see `ds_seq.modules.packed`."""
        if self.lora is not None:
            raise TypeError("experts with a low-rank change cannot be packed; merge it first")
        self._packed = [self._packed_net(expert, int8) for expert in range(self.num_local)]

    def _packed_net(self, expert: int, int8: bool) -> PackedNet:
        up, down = (of_all[expert] for of_all in self.maps)
        b1, b2 = bias_of(self.b1, expert), bias_of(self.b2, expert)
        if self.bits is None:
            return PackedNet(pack(up, b1, int8), pack(down, b2, int8))
        scales = (None, None) if self._scales is None else [each[expert] for each in self._scales]
        return PackedNet(
            self.bits.pack(up, b1, self.up_widths, scales[0]),
            self.bits.pack(down, b2, [len(down)], scales[1]),
        )

    def rounded_parameters(self) -> dict[str, RoundedParameter]:
        """See `ds_seq.weights.packed.HoldsBits`; each expert has scales of its own."""
        if self.bits is None:
            return {}
        up, down = self.maps
        return {
            "w1": self.bits.rounded(up, self.up_widths, transposed=True),
            "w2": self.bits.rounded(down, [down.size(1)]),
        }

    def restore_scales(self, scales: Mapping[str, Tensor]) -> None:
        """See `ds_seq.weights.packed.HoldsBits`."""
        self._scales = scales["w1"], scales["w2"]
        self.pack()

    @property
    def maps(self) -> tuple[Tensor, Tensor]:
        """Views of the weights, laid out like dense layers: (E_local, H, D) and (E_local, D, F)."""
        return self.w1.transpose(1, 2), self.w2

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        """The weights with their changes: (E_local, D, H) and (E_local, D, F)."""
        if self.lora is None:
            return self.w1, self.w2
        w1, w2 = self.lora(self.w1, self.w2)
        return w1, w2

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Apply each expert to its rows.

        Args:
            x: (R, D), sorted by expert.
            counts: (E_local,) int64, number of rows per expert; their sum is R.

        Returns:
            (R, D).
        """
        if self.inner_norm is not None or self.bits is not None:
            return self._one_by_one(x, counts.tolist())
        w1, w2 = self.weights
        if x.is_cuda and use_grouped_kernel(x, w1, w2):
            hidden = grouped_linear(x, w1, self.b1, counts)  # (R, H)
            hidden = self._activation.function(hidden)  # (R, F)
            hidden = dropout(hidden, self.dropout, self.training)
            return grouped_linear(hidden, w2.transpose(1, 2), self.b2, counts)
        noise = None
        if self.training and self.dropout > 0.0:
            noise = dropout_noise(x, (x.shape[0], self.w2.shape[2]), self.dropout)
        net = (w1, self.b1, w2, self.b2)
        if self._has_kernels and self._packed is None and serves(x, w1, w2):
            return few_rows(x, *net, noise, self._activation, counts)
        return expert_loop(x, *net, noise, self._activation, counts, self._packed)

    def _one_by_one(self, x: Tensor, counts: list[int]) -> Tensor:
        """Apply the experts one by one, each with its norm and its scales."""
        parts, activation = [x.new_empty(0, x.size(1))], self._activation
        w1, w2 = self.weights
        ups = w1.transpose(1, 2)
        for expert, rows in enumerate(torch.split(x, counts)):
            if len(rows) == 0 and not self.training:
                continue  # in training, an idle expert needs a gradient, of zeros
            packed = NOT_PACKED if self._packed is None else self._packed[expert]
            up, down = ups[expert], w2[expert]
            bias, fused = bias_of(self.b1, expert), activation.fused
            hidden = self._map(rows, up, bias, self.up_widths, fused, packed.up)
            if activation.rest is not None:
                hidden = activation.rest(hidden)
            hidden = dropout(hidden, self.dropout, self.training)
            if self.inner_norm is not None:
                hidden = self.inner_norm(hidden, expert)
            bias = bias_of(self.b2, expert)
            parts.append(self._map(hidden, down, bias, [len(down)], "none", packed.down))
        return torch.cat(parts)

    def _map(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        widths: Sequence[int],
        activation: str,
        packed: Packed | None,
    ) -> Tensor:
        if self.bits is None:
            return linear(x, weight, bias, activation, packed)
        return self.bits.linear(x, weight, bias, widths, activation, packed)


class StackedNorms(nn.Module):
    """One norm per expert, each parameter stacked over experts as (E_local, 1, F).

    Args:
        norm: norm of the kind of all of them; its parameters are their initial values.
        num_local: number of experts held by this rank.
    """

    def __init__(self, norm: nn.Module, num_local: int) -> None:
        super().__init__()
        initial = dict(norm.named_parameters())
        self._names = list(initial)
        self._norm = [norm.to("meta")]  # in a list, so that it is not a child
        for name, value in initial.items():
            stacked = value.detach().expand(num_local, 1, -1).clone()
            self.register_parameter(name, nn.Parameter(stacked))

    def one(self) -> nn.Module:
        """Return a norm of one expert, on the CPU, without values."""
        return copy.deepcopy(self._norm[0]).to_empty(device="cpu")

    def draw_parameters(self) -> None:
        """Draw the parameters as those of one norm, see `ds_seq.models.init`."""
        norm = self.one()
        if isinstance(norm, nn.LayerNorm):
            norm.reset_parameters()
        else:
            cast(Any, norm).draw_parameters()
        with torch.no_grad():
            for name, value in norm.named_parameters():
                self.get_parameter(name).copy_(value)

    def forward(self, x: Tensor, expert: int) -> Tensor:
        """Normalize the rows x (R, F) of one expert."""
        own = {name: self.get_parameter(name)[expert, 0] for name in self._names}
        result: Tensor = torch.func.functional_call(self._norm[0], own, x)
        return result


def expert_generator(seed: int, expert: int) -> torch.Generator:
    """Return a CPU generator for one expert; neighboring (seed, expert) pairs share no stream."""
    # an odd multiplier far from small integers keeps (seed, e + 1) apart from (seed + 1, e)
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + expert * 0x85EBCA77 + 1) % 2**63)
