"""Ensembles: several models whose predictions are averaged at every token.

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
    """The caches of all models of an ensemble, for one batch."""

    parts: tuple[CacheT, ...]

    def reorder(self, rows: Tensor) -> None:
        """Make hypothesis n a continuation of hypothesis `rows[n]`, in every model."""
        for part in self.parts:
            part.reorder(rows)

    def keep_sentences(self, kept: Tensor) -> None:
        """Keep only the sentences `kept`, with all their hypotheses, in every model."""
        for part in self.parts:
            part.keep_sentences(kept)


class Ensemble(Generic[EncodedT, CacheT]):
    """Several models that decode as one, by the mean of their predictions of the next token.

    Args:
        models: at least one model, all in evaluation mode, with the same vocabulary and on the same
            device.
        mean: what is averaged. `probabilities`: one confident model is enough for a likely token.
            `log_probabilities`: a geometric mean, which the search normalizes again; a token that
            one model rules out is ruled out (Hinton, 1999, "Products of experts").

    Raises:
        ValueError: there is no model.
    """

    def __init__(
        self, models: Sequence[Decodable[EncodedT, CacheT]], mean: EnsembleMean = "probabilities"
    ) -> None:
        if not models:
            raise ValueError("an ensemble needs a model")
        self._models = tuple(models)
        self._mean = mean

    def encode(self, source: Tensor, source_mask: Tensor) -> tuple[EncodedT, ...]:
        """Encode source tokens (B, S) with every model; the mask is True at real tokens."""
        return tuple(model.encode(source, source_mask) for model in self._models)

    def start_cache(
        self, encoded: tuple[EncodedT, ...], beam: int, max_length: int
    ) -> EnsembleCache[CacheT]:
        """Return caches for at most `max_length` steps with `beam` hypotheses per sentence."""
        pairs = zip(self._models, encoded, strict=True)
        return EnsembleCache(tuple(m.start_cache(e, beam, max_length) for m, e in pairs))

    def decode_step(self, tokens: Tensor, cache: EnsembleCache[CacheT]) -> Tensor:
        """Feed one token to each hypothesis (N,).

        Returns:
            Logits (N, V) of the next token in float32: the logarithm of the models' mean, up to a
            constant.
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
