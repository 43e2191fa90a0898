"""Several models that decide together about every token.

Shapes: B sentences, S source length, K beam width, N = B K hypotheses, V vocabulary, M models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from ds_seq.names import EnsembleMean
from ds_seq.search.beam_search import CacheT, Decodable, EncodedT


@dataclass
class EnsembleCache(Generic[CacheT]):
    """What each model remembers of a batch of searches."""

    parts: tuple[CacheT, ...]

    def reorder(self, rows: Tensor) -> None:
        """Let hypothesis n continue hypothesis rows[n], in every model."""
        for part in self.parts:
            part.reorder(rows)

    def keep_sentences(self, kept: Tensor) -> None:
        """Keep some sentences with all their hypotheses, in every model."""
        for part in self.parts:
            part.keep_sentences(kept)


class Ensemble(Generic[EncodedT, CacheT]):
    """Decodes like one model, by the mean of what its models say about the next token.

    Args:
        models: at least one, in evaluation mode, of the same vocabulary and on the same device.
        mean: of their ``probabilities``: one model that is sure is enough. Of their
            ``log_probabilities``, a geometric mean that the search makes sum to 1 again: what one
            model thinks impossible is impossible (Hinton, 1999, "Products of experts").
    """

    def __init__(
        self, models: Sequence[Decodable[EncodedT, CacheT]], mean: EnsembleMean = "probabilities"
    ) -> None:
        if not models:
            raise ValueError("an ensemble needs a model")
        self._models = tuple(models)
        self._mean = mean

    def encode(self, source: Tensor, source_mask: Tensor) -> tuple[EncodedT, ...]:
        """Encode source tokens (B, S) with every model; the mask is True at real ones."""
        return tuple(model.encode(source, source_mask) for model in self._models)

    def start_cache(
        self, encoded: tuple[EncodedT, ...], beam: int, max_length: int
    ) -> EnsembleCache[CacheT]:
        """Prepare every model for at most `max_length` steps with `beam` hypotheses a sentence."""
        pairs = zip(self._models, encoded, strict=True)
        return EnsembleCache(tuple(m.start_cache(own, beam, max_length) for m, own in pairs))

    def decode_step(self, tokens: Tensor, cache: EnsembleCache[CacheT]) -> Tensor:
        """Feed one token to each hypothesis (N,).

        Returns:
            Logits of the next (N, V) in single precision: the logarithm of the models' mean, up to
            a constant.
        """
        total: Tensor | None = None
        for model, part in zip(self._models, cache.parts, strict=True):
            scores = model.decode_step(tokens, part).log_softmax(-1, dtype=torch.float32)
            if total is None:
                total = scores
            elif self._mean == "probabilities":
                total = torch.logaddexp(total, scores)
            else:
                total += scores
        assert total is not None
        return total if self._mean == "probabilities" else total.div_(len(self._models))
