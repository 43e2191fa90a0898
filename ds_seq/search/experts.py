"""A search for a hypothesis of each expert of a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from ds_seq.search.beam_search import AnyRank, BeamSearch, CacheT, Decodable, EncodedT
from ds_seq.search.hypotheses import Hypothesis


@dataclass(frozen=True)
class ExpertSearch(BeamSearch):
    """Searches that differ in the start symbol alone, one after the other.

    Attributes:
        starts: start symbol of each expert.
    """

    starts: tuple[int, ...] = ()

    @torch.no_grad()
    def search(
        self,
        model: Decodable[EncodedT, CacheT],
        source: Tensor,
        source_mask: Tensor,
        any_rank: AnyRank | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses of each sentence, in the order of the experts.

        See `BeamSearch.search`; each expert contributes the `num_best` best ones.
        """
        of_experts = []
        for start in self.starts:
            search = BeamSearch(**{**self.settings, "symbols": replace(self.symbols, start=start)})
            of_experts.append(search.search(model, source, source_mask, any_rank, numbers))
        return [list(chain(*found)) for found in zip(*of_experts, strict=True)]
