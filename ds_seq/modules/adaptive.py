"""Adaptive input and adaptive softmax: bands of rarer tokens have narrower embeddings.

The first band has the most frequent tokens and full width. The softmax first chooses among its
tokens and the other bands, then within a band, so that of most labels few scores are computed.

Every band is called even if no token is in it: ZeRO stages 2 and 3 exchange gradients and gather
parameters in the same order on all ranks.

Shapes: B batch, T tokens, N rows, R rows of a band, D model width, W width of a band, n its tokens,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.modules.linear import Linear, linear

Use = Literal["embed", "narrow", "score"]


Shape = tuple[int, int, int]
"""First id of a band, number of its tokens (n), width of their embeddings (W)."""


class Band(nn.Module):
    """The table (n, W) of a band and its projection (D, W).

    All uses go through `forward`, see `ds_seq.modules.embedding.TokenEmbedding`.

    Args:
        shape: shape of the table.
        d_model: D.
        projects: whether there is a projection.
        pad_row: row of the padding token; it gets no gradient from embedding. None: no row.
        embeds: whether the band embeds tokens; else it only scores them.
    """

    def __init__(
        self,
        shape: Shape,
        d_model: int,
        projects: bool = True,
        pad_row: int | None = None,
        embeds: bool = True,
    ) -> None:
        super().__init__()
        self.pad_row, self._embeds = pad_row, embeds
        _, size, width = shape
        self.weight = nn.Parameter(torch.empty(size, width))
        self.projection = nn.Parameter(torch.empty(d_model, width)) if projects else None

    def draw_parameters(self) -> None:
        """Draw the parameters as fairseq does: a normal distribution for embeddings, else Xavier's.

        The padding row is zero.
        """
        if self._embeds:
            nn.init.normal_(self.weight, std=self.weight.size(1) ** -0.5)
        else:
            nn.init.xavier_uniform_(self.weight)
        if self.projection is not None:
            nn.init.xavier_uniform_(self.projection)
        if self.pad_row is not None:
            with torch.no_grad():
                self.weight[self.pad_row].zero_()

    def forward(self, x: Tensor, use: Use = "embed") -> Tensor:
        """Embed tokens or score them.

        Args:
            x: token ids (R,) counted from the start of the band to `embed`; hidden states (R, D)
                to `narrow`; narrowed states (R, W) to `score`.
            use: what to do.

        Returns:
            Embeddings (R, D), narrowed states (R, W), or scores (R, n).
        """
        if use == "score":
            return linear(x, self.weight)
        if use == "narrow":
            assert self.projection is not None, "the band has no projection"
            return linear(x, self.projection.t())
        embedded = F.embedding(x, self.weight, padding_idx=self.pad_row)
        return embedded if self.projection is None else linear(embedded, self.projection)


class AdaptiveEmbedding(nn.Module):
    """Adaptive input (Baevski and Auli, 2019, arXiv:1809.10853).

    Args:
        shapes: the bands in ascending order of ids.
        d_model: D.
        pad_id: padding token.
        scaled: whether embeddings are multiplied by sqrt(D).
    """

    def __init__(
        self, shapes: Sequence[Shape], d_model: int, pad_id: int, scaled: bool = True
    ) -> None:
        super().__init__()
        self.scale = math.sqrt(d_model) if scaled else 1.0
        self._starts = [start for start, _, _ in shapes]
        bands = []
        for shape in shapes:
            start, size, _ = shape
            row = pad_id - start if start <= pad_id < start + size else None
            bands.append(Band(shape, d_model, pad_row=row))
        self.bands = nn.ModuleList(bands)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed token ids (B, T): (B, T, D)."""
        flat = ids.flatten()
        rows = _rows_by_band(_bands_of(flat, self._starts), len(self.bands))
        embedded = torch.cat(
            [
                band(flat.index_select(0, own) - start)
                for band, start, own in zip(self.bands, self._starts, rows, strict=True)
            ]
        )
        placed = torch.empty_like(embedded).index_copy(0, torch.cat(rows), embedded)
        placed = placed.view(*ids.shape, -1)
        return placed if self.scale == 1.0 else placed * self.scale


class AdaptiveSoftmax(nn.Module):
    """Adaptive softmax (Grave et al., 2017, arXiv:1609.04309).

    Logarithms are computed in float32 at least.

    Args:
        shapes: the bands in ascending order of ids.
        d_model: D.
        tied: whether the tables are those of the embedding that is passed to `forward`.
        tied_projections: whether the projections are those of the embedding, too.
        dropout: dropout of the states, and of the narrowed states.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        d_model: int,
        tied: bool,
        tied_projections: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        first, *tails = shapes
        self._starts = [start for start, _, _ in shapes]
        self._dropout = dropout
        self.choice = Linear(d_model, len(tails), bias=False)
        self.bands = self.narrow = None
        if not tied:
            head = Band(first, d_model, projects=False, embeds=False)
            self.bands = nn.ModuleList([head, *(Band(s, d_model, embeds=False) for s in tails)])
        elif not tied_projections:
            maps = [Linear(d_model, width, bias=False) for _, _, width in tails]
            self.narrow = nn.ModuleList(maps)

    def forward(self, hidden: Tensor, embedding: nn.Module, labels: Tensor | None = None) -> Tensor:
        """Return log-probabilities, of all tokens or of the labels.

        Args:
            hidden: (N, D).
            embedding: the `AdaptiveEmbedding` of the model, whose tables are used if they are tied;
                any other module if not.
            labels: (N,) int64 correct tokens, or None.

        Returns:
            (N, V), or (N,) with labels.
        """
        if self.bands is not None:
            bands = list(self.bands)
        else:
            assert isinstance(embedding, AdaptiveEmbedding), "tied tables are those of bands"
            bands = list(embedding.bands)
        hidden = F.dropout(hidden, self._dropout, self.training)
        head = _log_softmax(torch.cat([bands[0](hidden, "score"), self.choice(hidden)], dim=-1))
        if labels is None:
            return self._all(hidden, head, bands)
        return self._of_labels(hidden, head, bands, labels)

    def _all(self, hidden: Tensor, head: Tensor, bands: list[nn.Module]) -> Tensor:
        size = self._starts[1]
        parts = [head[:, :size]]
        for number in range(1, len(bands)):
            chosen = head[:, size + number - 1, None]
            parts.append(_log_softmax(self._tail(bands, number, hidden)) + chosen)
        return torch.cat(parts, dim=1)

    def _of_labels(
        self, hidden: Tensor, head: Tensor, bands: list[nn.Module], labels: Tensor
    ) -> Tensor:
        number_of = _bands_of(labels, self._starts)
        _, *tails = _rows_by_band(number_of, len(bands))
        first = torch.where(number_of == 0, labels, self._starts[1] + number_of - 1)
        result = head.gather(1, first.unsqueeze(1)).squeeze(1)
        for number, rows in enumerate(tails, start=1):
            scores = self._tail(bands, number, hidden.index_select(0, rows))
            place = labels.index_select(0, rows) - self._starts[number]
            within = _log_softmax(scores).gather(1, place.unsqueeze(1)).squeeze(1)
            result = result.index_add(0, rows, within)
        return result

    def _tail(self, bands: list[nn.Module], number: int, hidden: Tensor) -> Tensor:
        """Return the scores (R, n) of the tokens of a band but the first for states (R, D)."""
        if self.narrow is None:
            narrow = bands[number](hidden, "narrow")
        else:
            narrow = self.narrow[number - 1](hidden)
        scores: Tensor = bands[number](F.dropout(narrow, self._dropout, self.training), "score")
        return scores


def _bands_of(ids: Tensor, starts: Sequence[int]) -> Tensor:
    """Return the number of the band of each id."""
    return torch.stack([ids >= start for start in starts[1:]]).sum(0)


def _rows_by_band(number_of: Tensor, num_bands: int) -> tuple[Tensor, ...]:
    """Return the rows (R,) of each band, given the number of the band of each row (N,)."""
    order = torch.argsort(number_of, stable=True)
    return order.split(torch.bincount(number_of, minlength=num_bands).tolist())


def _log_softmax(scores: Tensor) -> Tensor:
    return F.log_softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
