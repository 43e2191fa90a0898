"""Change training pairs on the fly: subwords, case, punctuation, typos, noise and tokens.

What is drawn for a pair is a function of (seed, epoch, number of the pair, which copy of it in the
epoch), so it is the same on any rank, in any batch and after a resume.

Shapes: N pairs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.hashing import hashed, uniform
from ds_seq.data.source import Key
from ds_seq.data.text_changes import add_typos, noise, title, without_end
from ds_seq.names import SideChoice
from ds_seq.text.subword_draws import SubwordDraws
from ds_seq.text.tokenizer import Tokenizers, ordinary_ids

Ids = list[int]
Pair = tuple[Ids, Ids]
_COPY = 1 << 40
_TEXT, _CASE, _DETAILS = range(3)
"""What a random number is for."""
_MOST_GROWTH = 0.98  # share of the sentences that are not too long for their place in a batch
_GROWTH_OF_CASE = 3.0  # words in upper case are rare in text, so they have more subwords
_GROWTH_OF_TYPOS = 1.6


def copy_numbers(rows: NDArray[np.integer], copies: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return numbers (N,) of copies of pairs; those of the first copies are those of the pairs.

    Args:
        rows: (N,) numbers of the pairs.
        copies: (N,) which copy in the epoch each is, from 0.
    """
    return rows.astype(np.uint64) + copies.astype(np.uint64) * np.uint64(_COPY)


@dataclass(frozen=True)
class Changes:
    """Shares and rates of changes; see the section `data.modify`."""

    subword_alpha: float
    subword_sides: SideChoice
    upper_case: float
    title_case: float
    lower_case: float
    drop_end_punctuation: float
    typos: float
    typo_rate: float
    noise: float
    token_drop: float
    token_mask: float
    token_switch: float
    truncate: int | None

    @property
    def of_text(self) -> tuple[float, ...]:
        """Shares of the changes of text."""
        return (
            self.upper_case,
            self.title_case,
            self.lower_case,
            self.drop_end_punctuation,
            self.typos,
            self.noise,
        )

    @property
    def of_tokens(self) -> tuple[float, ...]:
        """Rates of the changes of single tokens of the source."""
        return self.token_drop, self.token_mask, self.token_switch

    @property
    def any(self) -> bool:
        """Whether anything changes, apart from sides that are cut."""
        return bool(self.subword_alpha or any(self.of_text) or any(self.of_tokens))


class Modifier:
    """Changes the pairs of a corpus.

    Args:
        changes: what is changed, and how often.
        tokenizers: convert between text and ids.

    Raises:
        UserError: subwords are to be drawn, but the tokenizer cannot do so.
    """

    def __init__(self, changes: Changes, tokenizers: Tokenizers) -> None:
        self.changes, self._tokenizers = changes, tokenizers
        sides = changes.subword_sides if changes.subword_alpha else None
        self._draws = [
            SubwordDraws(tokenizer, changes.subword_alpha) if sides in (side, "both") else None
            for side, tokenizer in zip(("source", "target"), tokenizers, strict=True)
        ]
        self._growth = 1.0
        self._plain = ordinary_ids(tokenizers.source)

    def _kinds(self, rows: NDArray[np.integer], key: Key) -> list[NDArray[np.bool_]]:
        """Return which pairs (N,) each of `Changes.of_text` changes."""
        changes = self.changes
        case = uniform(rows, *key, _CASE)
        kinds, low = [], 0.0
        for share in changes.of_text[:3]:  # a text is in one case only
            kinds.append((low <= case) & (case < low + share))
            low += share
        for number, share in enumerate(changes.of_text[3:]):
            kinds.append(uniform(rows, *key, _TEXT, number) < share)
        return kinds

    def measure_growth(self, sides: Sequence[Sequence[Ids]]) -> None:
        """Measure how much longer drawn subwords make sentences; depends on nothing else.

        Args:
            sides: some sentences of both sides, with end symbols.
        """
        factors = [1.0]
        for draws, tokenizer, sentences in zip(self._draws, self._tokenizers, sides, strict=True):
            for number, ids in enumerate(sentences if draws is not None else ()):
                assert draws is not None
                text = tokenizer.decode(tokenizer.symbols.unframed(ids))
                drawn = tokenizer.symbols.framed(draws(text, random.Random(number)))
                factors.append(len(drawn) / len(ids))
        self._growth = float(np.quantile(factors, _MOST_GROWTH))

    def bounds(
        self, lengths: NDArray[np.integer], rows: NDArray[np.integer], key: Key
    ) -> NDArray[np.int64]:
        """Return upper bounds of the lengths (N, sides) in an epoch.

        Args:
            lengths: lengths of the pairs as they are.
            rows: (N,) numbers of the pairs; see `copy_numbers`.
            key: seed and epoch.
        """
        growth = np.ones(len(rows))
        if self.changes.subword_alpha:
            growth *= self._growth
        if any(self.changes.of_text):
            upper, titled, lower, _, typos, noisy = self._kinds(rows, key)
            growth *= np.where(upper | titled | noisy, _GROWTH_OF_CASE, 1.0)
            growth *= np.where(lower | typos, _GROWTH_OF_TYPOS, 1.0)
        return np.ceil(lengths * growth[:, None]).astype(np.int64)

    def __call__(self, pairs: Sequence[Pair], rows: NDArray[np.integer], key: Key) -> list[Pair]:
        """Return pairs (N) of ids as they are in an epoch.

        Args:
            pairs: the pairs as they are, with their opening and end symbols, which stay.
            rows: (N,) their numbers; see `copy_numbers`.
            key: seed and epoch.
        """
        kinds = np.stack(self._kinds(rows, key), axis=1).tolist()
        seeds = hashed(rows, *key, _DETAILS).tolist()
        source, target = (tokenizer.symbols for tokenizer in self._tokenizers)
        changed = []
        for pair, kind, seed in zip(pairs, kinds, seeds, strict=True):
            bare = source.unframed(pair[0]), target.unframed(pair[1])
            first, second = self._modified(bare, kind, random.Random(seed))
            changed.append((source.framed(first), target.framed(second)))
        return changed

    def _modified(self, pair: Pair, kinds: Sequence[bool], draw: random.Random) -> Pair:
        if any(kinds) or any(self._draws):
            sides = [self._tokenizers[n].decode(ids) for n, ids in enumerate(pair)]
            texts = self._changed(sides, kinds, draw) if any(kinds) else sides
            source, target = (
                self._encoded(n, texts[n], draw) or ids
                if any(kinds) or self._draws[n] is not None
                else ids
                for n, ids in enumerate(pair)
            )
            pair = source, target
        if any(self.changes.of_tokens):
            pair = self._with_changed_tokens(pair[0], draw), pair[1]
        return pair

    def _changed(
        self, texts: Sequence[str], kinds: Sequence[bool], draw: random.Random
    ) -> list[str]:
        upper, titled, lower, no_end, typos, noisy = kinds
        if noisy:
            return [noise(draw)] * 2
        source, target = texts
        if no_end:
            source, target = without_end(source), without_end(target)
        if upper:
            source, target = source.upper(), target.upper()
        elif titled:
            source, target = title(source), title(target)
        elif lower:
            source, target = source.lower(), target.lower()
        if typos:
            source = add_typos(source, self.changes.typo_rate, draw)
        return [source, target]

    def _encoded(self, side: int, text: str, draw: random.Random) -> Ids:
        draws = self._draws[side]
        return list(self._tokenizers[side].encode(text)) if draws is None else draws(text, draw)

    def _with_changed_tokens(self, ids: Ids, draw: random.Random) -> Ids:
        drop, mask, switch = self.changes.of_tokens
        unknown = self._tokenizers.source.symbols.unk
        changed = []
        for token in ids:
            if drop and draw.random() < drop:
                continue
            if mask and draw.random() < mask:
                token = unknown
            elif switch and draw.random() < switch:
                token = self._plain[draw.randrange(len(self._plain))]
            changed.append(token)
        return changed or ids
