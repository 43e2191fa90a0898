"""Adapters: small feed-forwards after a layer, in pools from which each sentence takes one.

Houlsby et al., 2019, "Parameter-Efficient Transfer Learning for NLP",
https://arxiv.org/abs/1902.00751, and Bapna and Firat, 2019, "Simple, Scalable Adaptation for Neural
Machine Translation", https://arxiv.org/abs/1909.08478, whose adapters follow the complete layer.

The second map starts at zero, so a model to which adapters are added stays the same function. A
gate is computed for each token, so a sentence has the same result alone and in any batch.

Shapes: B sentences, T tokens (in a search the K hypotheses of a sentence), D model width,
F width of the bottleneck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ds_seq.modules.activations import find_activation
from ds_seq.modules.body import BodyOutput, Context, TokenwiseBody
from ds_seq.modules.linear import Linear
from ds_seq.modules.residual import dropout

if TYPE_CHECKING:
    from ds_seq.modules.multiway import Ways


@dataclass(frozen=True)
class AdapterRows:
    """Which sentences of a batch pass through which adapter.

    Attributes:
        of_sentence: id of the adapter of each of the B sentences, None for no adapter; None if
            all sentences have the same.
        groups: by id, the sentences (N,) int64 that pass through an adapter; None for all of them.
            Ids that occur in no sentence are there, too: every rank calls the same adapters, which
            partitioned weights and the reduction of gradients require.
    """

    of_sentence: Sequence[str | None] | None
    groups: Mapping[str, Tensor | None]

    @classmethod
    def of(
        cls, ids: Sequence[str | None], known: Sequence[str], device: torch.device
    ) -> AdapterRows:
        """Group sentences by their adapters.

        Args:
            ids: id of the adapter of each sentence, None for no adapter.
            known: all ids that may occur, in the order of the calls.
            device: device of the model.
        """
        rows: dict[str, list[int]] = {adapter: [] for adapter in known}
        for row, adapter in enumerate(ids):
            if adapter is not None:
                rows[adapter].append(row)
        groups = {name: torch.tensor(own, dtype=torch.int64) for name, own in rows.items()}
        return cls(ids, {name: own.to(device) for name, own in groups.items()})

    def keep(self, kept: Tensor) -> AdapterRows:
        """Return the rows of only some sentences, in the order of `kept` (B',) int64."""
        if self.of_sentence is None:
            return self
        ids = [self.of_sentence[row] for row in kept.tolist()]
        return AdapterRows.of(ids, list(self.groups), kept.device)


@dataclass(frozen=True)
class AdapterChoice:
    """How a model chooses the adapter of each sentence.

    Attributes:
        active: id of the adapter of sentences without one of the tags; None for no adapter.
        of_tag: id of the adapter by the token id that begins the source.
    """

    active: str | None = None
    of_tag: Mapping[int, str] | None = None

    @property
    def used(self) -> tuple[str, ...]:
        """The ids that may be chosen, in a fixed order."""
        by_tag = sorted(set((self.of_tag or {}).values()) - {self.active})
        return tuple(by_tag if self.active is None else [self.active, *by_tag])

    def rows(self, source: Tensor) -> AdapterRows | None:
        """Return the adapters of a batch; None if no sentence has one.

        With tags, this makes the host wait for a GPU, once per batch.

        Args:
            source: source tokens (B, S).
        """
        if not self.of_tag:
            return None if self.active is None else AdapterRows(None, {self.active: None})
        ids = [self.of_tag.get(tag, self.active) for tag in source[:, 0].tolist()]
        return AdapterRows.of(ids, self.used, source.device)


class Adapter(nn.Module):
    """`x + dropout(gate * up(activation(down(norm(x)))))`, or with the norm around the sum.

    Args:
        d_model: width of the model, D.
        width: width of the bottleneck, F.
        activation: name of an entry of `ds_seq.modules.activations`.
        dropout: probability of dropping an element of the output of the maps in training.
        norm: norm of hidden states.
        norm_first: whether to normalize the input of the maps; otherwise the sum, with which even
            an untrained adapter changes its input.
        gated: whether to multiply the output of the maps by a scalar between 0 and 1, which is
            computed from it for each token.
    """

    def __init__(
        self,
        d_model: int,
        width: int,
        activation: str,
        dropout: float,
        norm: nn.Module,
        norm_first: bool,
        gated: bool,
    ) -> None:
        super().__init__()
        entry = find_activation(activation)
        self._fused, self._rest = entry.fused, entry.rest
        self.dropout, self.norm_first = dropout, norm_first
        self.norm = norm
        self.down = Linear(d_model, entry.num_parts * width, parts=entry.num_parts)
        self.up = Linear(width, d_model, gain=0.0)
        self.gate = Linear(d_model, 1) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        """Transform hidden states (..., D)."""
        hidden: Tensor = self.down(self.norm(x) if self.norm_first else x, self._fused)
        if self._rest is not None:
            hidden = self._rest(hidden)
        y: Tensor = self.up(hidden)
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(y))
        y = x + dropout(y, self.dropout, self.training)
        return y if self.norm_first else self.norm(y)


class AdapterPool(TokenwiseBody):
    """The adapters of one layer, of which each sentence passes through one or none.

    The residual connection is part of an adapter: put the pool into a `NoResidual`. A layer that is
    called several times has the same adapters in every call.

    Args:
        adapters: adapters by id; their names as children are `for_ID`, because an id may be the
            name of a method of modules.
    """

    def __init__(self, adapters: Mapping[str, Adapter]) -> None:
        super().__init__()
        for name, adapter in adapters.items():
            self.add_module(f"for_{name}", adapter)

    def forward(self, x: Tensor, context: Context) -> BodyOutput:
        """Transform x (B, T, D) by the adapters that `context.adapters` names, if it does."""
        rows: AdapterRows | None = context.adapters
        for name, group in {}.items() if rows is None else rows.groups.items():
            adapter = self.get_submodule(f"for_{name}")
            if group is None:
                x = adapter(x)
            else:  # the groups are disjoint
                x = x.index_copy(0, group, adapter(x.index_select(0, group)))
        return BodyOutput(x)


class NoResidual(nn.Module):
    """The residual around a body that has its own: it changes nothing."""

    def enter(self, x: Tensor, ways: Ways | None = None) -> Tensor:
        """Return x (B, T, D)."""
        return x

    def leave(self, x: Tensor, y: Tensor, ways: Ways | None = None) -> Tensor:
        """Return the output of the body, y (B, T, D)."""
        return y
