"""Word alignments from attention: which source token each token of a translation attends to.

Bahdanau et al., 2015, "Neural Machine Translation by Jointly Learning to Align and Translate",
https://arxiv.org/abs/1409.0473. The search does not store attention maps; one forced pass over its
results is cheaper.

Shapes: S source length, T tokens of a translation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ds_seq.errors import UserError
from ds_seq.generation.forced import ForcedPair, Scorable, attention_maps
from ds_seq.generation.translate import BatchLimits, LineResult, cut_batches
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.text.tokenizer import Tokenizers


@dataclass(frozen=True)
class Aligner:
    """Adds an `alignment` to every hypothesis.

    Each token is aligned with the source token that has the highest cross-attention weight when the
    token is predicted, averaged over the heads of a decoder layer and over all models. The end
    symbol of the source and a language tag at its start are never chosen, since they collect the
    weight of tokens without a counterpart.

    Attributes:
        models: models in evaluation mode; a forward pass must not be a collective of several ranks.
        tokenizers: tokenizers, for the language tags of the source and the special symbols.
        limits: size of the batches.
        device: device of the models.
        layer: index of the decoder layer call, from 0; None for the last.
    """

    models: Sequence[Scorable]
    tokenizers: Tokenizers
    limits: BatchLimits
    device: torch.device
    layer: int | None = None

    def check(self) -> None:
        """Check that the model has the layer.

        Raises:
            UserError: there is no such layer, or no attention to the source.
        """
        try:
            self._probe()
        except IndexError:
            raise UserError(
                f"--align-layer {(self.layer or 0) + 1}: the decoder has fewer layers; take a "
                "lower number, or leave it out for the last layer"
            ) from None

    def can_align(self) -> bool:
        """Return whether all models attend to the source."""
        try:
            self._probe()
        except UserError:
            return False
        return True

    def _probe(self) -> None:
        self._maps([ForcedPair([self.tokenizers.source.symbols.eos], [])])

    def __call__(self, batch: list[LineResult]) -> list[LineResult]:
        """Return the results of a batch with alignments."""
        flat = [
            ForcedPair(result.source, hypothesis.tokens)
            for result in batch
            for hypothesis in result.hypotheses
        ]
        alignments = iter(self.align(flat))

        def aligned(hypothesis: Hypothesis) -> Hypothesis:
            return replace(hypothesis, alignment=next(alignments))

        return [
            result._replace(hypotheses=[aligned(hypothesis) for hypothesis in result.hypotheses])
            for result in batch
        ]

    def align(self, pairs: list[ForcedPair]) -> list[list[int]]:
        """Return the index of the source token that each target token of each pair attends to."""
        done: list[list[int]] = [[] for _ in pairs]
        todo = [number for number, pair in enumerate(pairs) if pair.target]
        lengths = [max(len(pairs[i].source), len(pairs[i].target) + 1) for i in todo]
        for rows in cut_batches(np.array(lengths, np.int64), self.limits):
            batch = [todo[row] for row in rows]
            for i, weights in zip(batch, self._maps([pairs[i] for i in batch]), strict=True):
                done[i] = self._hard(pairs[i], weights)
        return done

    def _maps(self, pairs: list[ForcedPair]) -> list[Tensor]:
        """Return the attention maps (T, S) of each pair, summed over the models."""
        maps = [
            attention_maps(model, self.tokenizers.symbols, pairs, self.device, self.layer)
            for model in self.models
        ]
        return [torch.stack(weights).sum(0) for weights in zip(*maps, strict=True)]

    def _hard(self, pair: ForcedPair, weights: Tensor) -> list[int]:
        """Return the column of the highest weight in each row of (T, S); changes the weights."""
        tags = self.tokenizers.source.tag_ids
        tagged = len(pair.source) > 2 and pair.source[0] in tags
        weights[:, -1] = -math.inf
        if tagged:
            weights[:, 0] = -math.inf
        places: list[int] = weights.argmax(1).tolist()
        return places
