"""Translations that a criterion lets the model generate in training.

Shapes: B sentences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch

from ds_seq.criterions.base import Current
from ds_seq.data.batch import Batch, Seq2SeqInputs
from ds_seq.search.beam_search import BeamSearch, Decodable
from ds_seq.search.guides import Plain
from ds_seq.search.sampling import Sampling
from ds_seq.text.tokenizer import Tokenizer


class Generation(NamedTuple):
    """What a run gives to criterions that generate.

    Attributes:
        search: the search of the experiment, with targets as long as those of the data may be.
        tokenizer: tokenizer of the target.
        target_lang: language code of the target.
        seed: seed of the run.
    """

    search: BeamSearch
    tokenizer: Tokenizer
    target_lang: str
    seed: int


@dataclass(frozen=True)
class Generator:
    """Generates candidates for the sources of a batch.

    What is drawn depends on the seed, the update and the number of the sentence in the data alone:
    not on ranks, batches or a resume.

    Attributes:
        search: finds the candidates; with `sampling` its seed is replaced in each update.
        seed: seed of the run.
    """

    search: BeamSearch
    seed: int

    @torch.no_grad()
    def __call__(self, batch: Batch[Seq2SeqInputs], current: Current) -> list[list[list[int]]]:
        """Return the distinct candidates of each sentence, without end symbols. A collective.

        The model generates in evaluation mode; its mode is restored.
        """
        search, model = self.search, current.model
        if search.sampling is not None:
            sampling = replace(search.sampling, seed=_mixed(self.seed, current.update))
            search = replace(search, sampling=sampling)
        inputs, count = batch.inputs, batch.num_sentences
        was_training = model.training
        model.eval()
        try:
            found = search.search(
                cast("Decodable[Any, Any]", model),
                inputs.source[:count],
                inputs.source_mask[:count],
                current.any_rank,
                batch.indices.tolist(),
            )
        finally:
            model.train(was_training)
        return [
            [list(ids) for ids in dict.fromkeys(tuple(each.tokens) for each in hypotheses)]
            for hypotheses in found
        ]


def _mixed(seed: int, update: int) -> int:
    return (seed * 1_000_003 + update) % 2**64


def candidate_search(
    search: BeamSearch, count: int, sampling: Sampling | None, temperature: float
) -> BeamSearch:
    """Return a search for `count` candidates with the length limits of another one.

    Args:
        search: the search whose limits hold.
        count: number of candidates.
        sampling: how to draw them; None: the best of a beam search of that width.
        temperature: divisor of the logits of which candidates are drawn.
    """
    return replace(
        search,
        beam=count,
        num_best=count,
        sampling=sampling,
        temperature=1.0 if sampling is None else temperature,
        no_repeat_ngram=0,
        selection=Plain(),
    )
