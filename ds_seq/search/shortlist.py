"""Beam search in a part of the vocabulary: the likely translations of each source token.

The scores of the whole vocabulary are most of the work of a small decoder. Jean et al., 2015, "On
Using Very Large Target Vocabulary for Neural Machine Translation", https://arxiv.org/abs/1412.2007;
also in Marian (`--shortlist`) and Sockeye (`--restrict-lexicon`).

A batch is scored against the union of the lists of its sentences, and each sentence is then kept to
its own list. So a translation does not depend on its batch, which it would if all sentences could
use the union.

Shapes: B sentences, S source length, A unfinished sentences, K beam width, N = A K hypotheses (row
n belongs to sentence n // K), V vocabulary of the target, U tokens of the union, L targets of a
source token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ds_seq.errors import UserError
from ds_seq.search.beam_search import AnyRank, BeamSearch, CacheT, Decodable, EncodedT
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.text.tokenizer import Symbols

Scorer = Callable[[Tensor], Tensor]
"""Scores hidden states (N, D) against some tokens; returns logits (N, U)."""


@runtime_checkable
class Restrictable(Decodable[EncodedT, CacheT], Protocol[EncodedT, CacheT]):
    """A model that can score a part of the vocabulary."""

    def scorer(self, tokens: Tensor) -> Scorer:
        """Return a scorer of the tokens (U,)."""

    def decode_with(self, tokens: Tensor, cache: CacheT, scores: Scorer) -> Tensor:
        """Do what `decode_step` does, with the logits (N, U) of a scorer."""


class Shortlist(NamedTuple):
    """Which target tokens a source permits."""

    targets: Tensor
    """(source vocabulary, L) int64, targets of each source token; shorter lists repeat a token."""
    always: Tensor
    """Target tokens that every source permits, int64."""
    vocab_size: int
    """V."""

    def allowed(self, source: Tensor, mask: Tensor) -> Tensor:
        """Return which tokens (B, V) the real tokens of sources (B, S) permit."""
        allowed = torch.zeros(len(source), self.vocab_size, dtype=torch.bool, device=source.device)
        source = torch.where(mask, source, source[:, :1])  # padding permits nothing more
        allowed.scatter_(1, self.targets[source].flatten(1), True)
        allowed[:, self.always] = True
        return allowed


@dataclass(frozen=True)
class ShortlistSearch(BeamSearch):
    """A beam search whose translations consist of tokens of a shortlist.

    Probabilities are those among the permitted tokens. With a list of the whole vocabulary, it is
    the search without one.

    Attributes:
        shortlist: the permitted tokens, among them all special symbols.

    Raises:
        UserError: guides are to take part, which know the whole vocabulary only.
    """

    shortlist: Shortlist = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guides:
            raise UserError(
                "--shortlist: cannot be combined with --prefix, --constraints, --allowed, "
                "--target-tag or --lm, nor with a model whose translations begin with symbols of "
                "its own; leave it out"
            )

    @torch.no_grad()
    def search(
        self,
        model: Decodable[EncodedT, CacheT],
        source: Tensor,
        source_mask: Tensor,
        any_rank: AnyRank | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[list[Hypothesis]]:
        """See `BeamSearch.search`.

        Raises:
            UserError: the model cannot score a part of the vocabulary.
        """
        if not isinstance(model, Restrictable) or any_rank is not None:
            raise UserError(
                "--shortlist: needs one Transformer, whole in each process; leave it out for "
                "ensembles, other models, --expert-parallel and ZeRO stage 3"
            )
        if len(source) == 0:
            return []
        allowed = self.shortlist.allowed(source, source_mask)
        tokens = allowed.any(0).nonzero().flatten()  # (U,)
        places = {token: place for place, token in enumerate(tokens.tolist())}
        search = BeamSearch(**{**self.settings, "symbols": _placed(self.symbols, places)})
        restricted = _Restricted(model, tokens, allowed.index_select(1, tokens))
        found = search.search(restricted, source, source_mask, None, numbers)
        ids = tokens.tolist()
        return [
            [replace(each, tokens=[ids[place] for place in each.tokens]) for each in hypotheses]
            for hypotheses in found
        ]


def _placed(symbols: Symbols, places: dict[int, int]) -> Symbols:
    """Return symbols as places in the union."""
    return replace(
        symbols,
        pad=places[symbols.pad],
        eos=places[symbols.eos],
        unk=places[symbols.unk],
        start=places[symbols.start],
        bos=None if symbols.bos is None else places[symbols.bos],
    )


class _RestrictedCache(Generic[CacheT]):
    """The cache of a model, and the penalties (A, 1, U) of a union: 0, or -inf if ruled out."""

    def __init__(self, inner: CacheT, penalties: Tensor | None) -> None:
        self.inner, self.penalties = inner, penalties

    def reorder(self, rows: Tensor) -> None:
        """See `Cache`."""
        self.inner.reorder(rows)

    def keep_sentences(self, kept: Tensor) -> None:
        """See `Cache`."""
        self.inner.keep_sentences(kept)
        if self.penalties is not None:
            self.penalties = self.penalties.index_select(0, kept)


class _Restricted(Generic[EncodedT, CacheT]):
    """A model whose vocabulary is a union of lists.

    Args:
        model: the model.
        tokens: the union (U,), ascending.
        allowed: (B, U), which of these each sentence permits.
    """

    def __init__(
        self, model: Restrictable[EncodedT, CacheT], tokens: Tensor, allowed: Tensor
    ) -> None:
        self._model, self._tokens = model, tokens
        self._ruled_out = None if bool(allowed.all()) else ~allowed[:, None]  # (B, 1, U)
        self._scores = model.scorer(tokens)

    def encode(self, source: Tensor, source_mask: Tensor) -> EncodedT:
        """See `Decodable`."""
        return self._model.encode(source, source_mask)

    def start_cache(
        self, encoded: EncodedT, beam: int, max_length: int
    ) -> _RestrictedCache[CacheT]:
        """See `Decodable`."""
        inner = self._model.start_cache(encoded, beam, max_length)
        if self._ruled_out is None:
            return _RestrictedCache(inner, None)
        # added in each step, because filling under a mask takes ten times as long
        penalties = torch.zeros(self._ruled_out.shape, device=self._ruled_out.device)
        return _RestrictedCache(inner, penalties.masked_fill_(self._ruled_out, -math.inf))

    def decode_step(self, tokens: Tensor, cache: _RestrictedCache[CacheT]) -> Tensor:
        """See `Decodable`; tokens (N,) and logits (N, U) are places in the union."""
        logits = self._model.decode_with(self._tokens[tokens], cache.inner, self._scores)
        if cache.penalties is not None:
            of_sentences = logits.view(len(cache.penalties), -1, logits.size(1))  # (A, K, U)
            of_sentences.add_(cache.penalties)
        return logits
