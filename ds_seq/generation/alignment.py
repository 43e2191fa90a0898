"""Word alignments from attention: which part of the source each token of a translation looks at.

Bahdanau et al., 2015, "Neural Machine Translation by Jointly Learning to Align and Translate",
https://arxiv.org/abs/1409.0473. The search does not keep attention maps; one forced pass over
what it has found is cheaper.

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
    """Gives every hypothesis its `alignment`.

    Each token is aligned with the source token that the mean over the heads of a decoder layer
    weighs most when the token is predicted; of several models, the mean over these as well. The end
    of the source is never chosen, nor is a language tag that opens it: they gather the weight of
    tokens that have no counterpart.

    Attributes:
        models: in evaluation mode; a pass must not be a collective of several ranks.
        tokenizers: know the language tags of the source and the special symbols.
        limits: size of the batches.
        device: where the model is.
        layer: call of a decoder layer, from 0; None = the last.
    """

    models: Sequence[Scorable]
    tokenizers: Tokenizers
    limits: BatchLimits
    device: torch.device
    layer: int | None = None

    def check(self) -> None:
        """Refuse a layer that the model does not have.

        Raises:
            UserError: there is none of that number.
        """
        probe = [ForcedPair([self.tokenizers.source.symbols.eos], [])]
        try:
            self._maps(probe)
        except IndexError:
            raise UserError(
                f"--align-layer {(self.layer or 0) + 1}: the decoder has fewer layers; take a "
                "lower number, or leave it out for the last layer"
            ) from None

    def __call__(self, batch: list[LineResult]) -> list[LineResult]:
        """The same, with alignments."""
        flat = [
            ForcedPair(one.source, hypothesis.tokens)
            for one in batch
            for hypothesis in one.hypotheses
        ]
        alignments = iter(self.align(flat))

        def aligned(hypothesis: Hypothesis) -> Hypothesis:
            return replace(hypothesis, alignment=next(alignments))

        return [
            one._replace(hypotheses=[aligned(hypothesis) for hypothesis in one.hypotheses])
            for one in batch
        ]

    def align(self, pairs: list[ForcedPair]) -> list[list[int]]:
        """Place in the source of what each token of each target looks at."""
        done: list[list[int]] = [[] for _ in pairs]
        todo = [number for number, pair in enumerate(pairs) if pair.target]
        lengths = [max(len(pairs[i].source), len(pairs[i].target) + 1) for i in todo]
        for rows in cut_batches(np.array(lengths, np.int64), self.limits):
            batch = [todo[row] for row in rows]
            for i, seen in zip(batch, self._maps([pairs[i] for i in batch]), strict=True):
                done[i] = self._hard(pairs[i], seen)
        return done

    def _maps(self, pairs: list[ForcedPair]) -> list[Tensor]:
        """The sum over models of the attention maps (T, S) of each pair."""
        maps = [
            attention_maps(model, self.tokenizers.symbols, pairs, self.device, self.layer)
            for model in self.models
        ]
        return [torch.stack(seen).sum(0) for seen in zip(*maps, strict=True)]

    def _hard(self, pair: ForcedPair, seen: Tensor) -> list[int]:
        """The heaviest place of each row of (T, S), which is changed."""
        tags = self.tokenizers.source.tag_ids
        tagged = len(pair.source) > 2 and pair.source[0] in tags
        seen[:, -1] = -math.inf
        if tagged:
            seen[:, 0] = -math.inf
        places: list[int] = seen.argmax(1).tolist()
        return places
