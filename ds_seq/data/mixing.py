"""The order of several corpora: which pairs each epoch of a mix holds, in every stage.

Everything is a function of (seed, position):

1. A stage gives each corpus a share. Of the first K pairs of the stage, corpus c has exactly
   `K * share`, rounded down (the corpus with the largest share has the rest), so shares are exact
   at any time, not on average.
2. A corpus is walked through again and again, each pass in an order of its own that is a function
   of (seed, name of the corpus, pass). No pair is taken again before all have been taken, and this
   goes on across stages.
3. An epoch of the mix is the next `pairs` of the stage. If it has copies of a pair, they are dealt
   to sections of the epoch, each with the same shares, see `ds_seq.data.sections`.
   `TokenBatchSampler` makes batches of each section.

Where a stage ends within an epoch, after a number of updates or when a metric no longer improves,
the pairs of that epoch which no batch has held yet come first when their corpora are taken next.

A `Segment` is a run of epochs without such an event. The list of segments so far is all that a
checkpoint has to remember. It does not depend on ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.batching import Selected, TokenBatchSampler
from ds_seq.data.cuts import number_type
from ds_seq.data.permutation import Permutation
from ds_seq.data.sections import deal, most_copies, with_copies

ORDER = 2
"""Version of the order of an epoch."""
_PRECISION = 1 << 40  # shares that are not fractions are rounded to multiples of 1 / 2 ** 40
_NO_ROWS: NDArray[np.int64] = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Corpus:
    """A training corpus: a range of the pairs of a dataset.

    Attributes:
        name: its name, which determines the order of its pairs.
        first: number of its first pair.
        size: number of its pairs.
        weight: factor of its share.
        upsample: how often each pair counts.
        fingerprint: fingerprint of its content.
    """

    name: str
    first: int
    size: int
    weight: float
    upsample: int
    fingerprint: str


@dataclass(frozen=True)
class Until:
    """The end of a stage; at most one of the numbers is given, or the name of a metric.

    Attributes:
        epochs: number of epochs, or of passes over the corpus `of`.
        of: name of a corpus, or None for epochs of the mix.
        updates: number of updates.
        metric: figure of the validation that no longer improves.
        validations: number of consecutive validations without a better figure.
    """

    epochs: int | None = None
    of: str | None = None
    updates: int | None = None
    metric: str | None = None
    validations: int | None = None


@dataclass(frozen=True)
class Stage:
    """A part of the training with a mix of its own.

    Attributes:
        name: name for messages.
        shares: shares by corpus, as whole numbers; corpora without one are not in the stage.
        epoch_pairs: number of pairs per epoch.
        until: when the stage ends.
    """

    name: str
    shares: Mapping[str, int]
    epoch_pairs: int
    until: Until = Until()

    def counts(self, taken: int) -> dict[str, int]:
        """Return how many of the first `taken` pairs of the stage are of each corpus."""
        total = sum(self.shares.values())
        counts = {name: taken * share // total for name, share in self.shares.items()}
        largest = max(self.shares, key=lambda name: self.shares[name])
        counts[largest] += taken - sum(counts.values())
        return counts

    def num_pairs(self, corpora: Mapping[str, Corpus]) -> int | None:
        """Return the number of pairs of the stage if it ends after a number of epochs."""
        if self.until.epochs is None:
            return None
        if self.until.of is None:
            return self.until.epochs * self.epoch_pairs
        wanted = self.until.epochs * corpora[self.until.of].size
        return -(-wanted * sum(self.shares.values()) // self.shares[self.until.of])


def shares_by_size(corpora: Sequence[Corpus], temperature: float) -> dict[str, int]:
    """Return `weight * (upsample * size) ** (1 / temperature)` of each corpus as whole numbers.

    At temperature 1 they are exact: an epoch holds each pair as often as it counts. Arivazhagan et
    al., 2019, "Massively Multilingual Neural Machine Translation in the Wild",
    https://arxiv.org/abs/1907.05019 (there with temperature 5).
    """
    if temperature == 1.0:
        exact = {c.name: Fraction(str(c.weight)) * c.upsample * c.size for c in corpora}
        scale = max(share.denominator for share in exact.values())
        return {name: round(share * scale) for name, share in exact.items()}
    power = 1.0 / temperature  # 0 for an infinite temperature
    return shares_of({c.name: c.weight * (c.upsample * c.size) ** power for c in corpora})


def shares_of(weights: Mapping[str, float]) -> dict[str, int]:
    """Return shares as whole numbers, rounded so far that all machines agree."""
    total = sum(weights.values())
    return {name: max(1, round(w / total * _PRECISION)) for name, w in weights.items()}


def epoch_pairs(corpora: Sequence[Corpus], wanted: int | None) -> int:
    """Return the number of pairs of an epoch: `wanted`, or the sum of all pairs as they count.

    A mix of C corpora needs C * C pairs, so that rounding never takes a pair back.
    """
    natural = sum(corpus.upsample * corpus.size for corpus in corpora)
    return max(natural if wanted is None else wanted, len(corpora) ** 2)


class Segment(NamedTuple):
    """A run of epochs of one stage.

    Attributes:
        stage: number of the stage, from 0.
        epoch: its first epoch.
        taken: pairs of the stage before it.
        walked: pairs of each corpus before it, not counting those that a cut epoch left.
        cut: number of batches of the epoch before it that were done, if that epoch ended early.
        order: version of the order; version 1 has no sections. A checkpoint of an earlier version
            keeps it until its epoch ends.
    """

    stage: int
    epoch: int
    taken: int
    walked: tuple[int, ...]
    cut: int | None = None
    order: int = ORDER


Plan = tuple[Segment, ...]
"""All segments so far; the last one goes on."""


class Position(NamedTuple):
    """A position between two updates, the same for all ranks.

    Attributes:
        epoch: epoch of the next batch, from 1.
        done: number of batches of that epoch in finished updates, over all ranks.
        plan: segments of the mix; empty without a mix.
        stage_updates: number of finished updates of the stage.
    """

    epoch: int = 1
    done: int = 0
    plan: Plan = ()
    stage_updates: int = 0

    @property
    def stage(self) -> int:
        """Number of the stage, from 0; 0 without a mix."""
        return self.plan[-1].stage if self.plan else 0


BoundsInStage = Callable[[int, int, NDArray[np.integer]], NDArray[np.integer]]
"""(stage, epoch, (M,) numbers of pairs) -> (M, sides) upper bounds of their lengths."""


class Mix:
    """The pairs of each epoch of a mix.

    Args:
        corpora: the corpora.
        stages: the stages; the last one has no end.
        seed: seed of the order.
        sampler: makes batches of the pairs of an epoch.
        bounds: lengths in an epoch of a stage, if they change from epoch to epoch.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        stages: Sequence[Stage],
        seed: int,
        sampler: TokenBatchSampler,
        bounds: BoundsInStage | None = None,
    ) -> None:
        self._bounds = bounds
        self.corpora = {corpus.name: corpus for corpus in corpora}
        self.stages = tuple(stages)
        self._seed = seed
        self._sampler = sampler
        self._end = max(corpus.first + corpus.size for corpus in corpora)
        self._left = lru_cache(maxsize=4)(self._find_left)
        self.sampler = lru_cache(maxsize=4)(self._make_sampler)
        self.start: Plan = (Segment(0, 1, 0, (0,) * len(self.corpora)),)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all that determines the order, besides the limits of batches."""
        content = repr((self._seed, list(self.corpora.values()), self.stages))
        return hashlib.sha256(content.encode()).hexdigest()

    def stage(self, plan: Plan) -> Stage:
        """Return the stage in which a plan ends."""
        return self.stages[plan[-1].stage]

    def _make_sampler(self, plan: Plan) -> TokenBatchSampler:
        """Return the sampler of the epochs of the last segment of a plan."""
        label = hashlib.sha256(repr((self.fingerprint, plan)).encode()).hexdigest()[:16]
        bounds = None if self._bounds is None else partial(self._bounds, plan[-1].stage)
        return self._sampler.with_rows(lambda epoch: self.rows(plan, epoch), bounds, label)

    def last_epoch(self, plan: Plan) -> int | None:
        """Return the last epoch of the stage in which a plan ends, None if it is not known."""
        total = self.stage(plan).num_pairs(self.corpora)
        if total is None:
            return None
        left = max(0, total - plan[-1].taken)
        return plan[-1].epoch + max(1, left // self.stage(plan).epoch_pairs) - 1

    def _span(self, plan: Plan, epoch: int) -> tuple[int, int]:
        """Return the numbers of pairs of the stage before and after an epoch."""
        segment, size = plan[-1], self.stage(plan).epoch_pairs
        start = segment.taken + (epoch - segment.epoch) * size
        if epoch != self.last_epoch(plan):
            return start, start + size
        total = self.stage(plan).num_pairs(self.corpora)
        assert total is not None
        return start, max(total, start + 1)  # the last epoch has the rest, too

    def _draws(self, plan: Plan, pairs: int) -> dict[str, int]:
        """Return how many pairs of each corpus the segment has taken after `pairs` of the stage."""
        stage, before = self.stage(plan), self.stage(plan).counts(plan[-1].taken)
        return {name: count - before[name] for name, count in stage.counts(pairs).items()}

    def rows(self, plan: Plan, epoch: int) -> Selected:
        """Return the pairs of an epoch of the last segment.

        Where pairs change on the fly, copy n of a pair has its number plus n times that of the
        pairs, so that each is changed in its own way.
        """
        start, stop = (self._draws(plan, pairs) for pairs in self._span(plan, epoch))
        sizes, left = self._sizes(plan, epoch), self._left(plan)
        walked = dict(zip(self.corpora, plan[-1].walked, strict=True))
        rows = np.empty(sum(sizes.values()), number_type(self._end))
        parts, passes, place = list[NDArray[np.unsignedinteger]](), list[int](), 0
        for name, size in sizes.items():
            part = rows[place : place + size]
            rest = left[name][start[name] : stop[name]]
            part[: len(rest)] = rest
            first = walked[name] + max(0, start[name] - len(left[name]))
            self._walk(self.corpora[name], first, part[len(rest) :])
            parts.append(part)
            passes.append(_passes(first, size - len(rest), self.corpora[name].size) + len(rest))
            place += size
        if plan[-1].order < 2:  # noqa: PLR2004  (a version)
            return Selected.whole(rows)
        copies = max(most_copies(part, most) for part, most in zip(parts, passes, strict=True))
        if copies == 1:
            return Selected.whole(rows)
        if self._bounds is not None:
            parts = [with_copies(part, self._end) for part in parts]
        return deal(parts, min(copies, self._sampler.most_sections(len(rows))), epoch)

    def _sizes(self, plan: Plan, epoch: int) -> dict[str, int]:
        """Return how many pairs of each corpus an epoch has, in the order of `rows`."""
        start, stop = (self._draws(plan, pairs) for pairs in self._span(plan, epoch))
        return {name: stop[name] - start[name] for name in self.corpora if name in stop}

    def _walk(self, corpus: Corpus, first: int, out: NDArray[np.unsignedinteger]) -> None:
        """Fill `out` from the endless walk through a corpus, without its first pairs."""
        key = int.from_bytes(hashlib.sha256(corpus.name.encode()).digest()[:8], "big")
        while len(out):
            number, place = divmod(first, corpus.size)
            part = out[: corpus.size - place]
            Permutation(corpus.size, (self._seed, key, number)).fill(part, place)
            part += part.dtype.type(corpus.first)
            first, out = first + len(part), out[len(part) :]

    def _find_left(self, plan: Plan) -> dict[str, NDArray[np.int64]]:
        """Return the pairs that the segments before the last one have left, by corpus."""
        if len(plan) == 1:
            return dict.fromkeys(self.corpora, _NO_ROWS)
        segment, before = plan[-1], plan[:-1]
        last = segment.epoch - 1
        drawn = self._draws(before, self._span(before, last)[1]) if last >= before[-1].epoch else {}
        left = {name: rows[drawn.get(name, 0) :] for name, rows in self._left(before).items()}
        if segment.cut is None:
            return left
        unseen = self._unseen(before, last, segment.cut)
        return {name: np.concatenate([unseen.get(name, _NO_ROWS), left[name]]) for name in left}

    def _unseen(self, plan: Plan, epoch: int, done: int) -> dict[str, NDArray[np.int64]]:
        """Return the pairs of an epoch that are not in its first `done` batches, by corpus."""
        places, cuts, sequence = self.sampler(plan).order(epoch, wants_places=True)
        is_unseen = np.ones(len(places), bool)
        for number in sequence[:done]:
            is_unseen[places[cuts[number] : cuts[number + 1]]] = False
        unseen = self.rows(plan, epoch).pairs[is_unseen].astype(np.int64) % self._end
        return {
            corpus.name: unseen[(corpus.first <= unseen) & (unseen < corpus.first + corpus.size)]
            for corpus in self.corpora.values()
        }

    def _walked(self, plan: Plan, pairs: int) -> tuple[int, ...]:
        """Return how many pairs of each corpus are taken after `pairs` of the stage."""
        drawn, left = self._draws(plan, pairs), self._left(plan)
        before = zip(self.corpora, plan[-1].walked, strict=True)
        return tuple(
            walked + max(0, drawn.get(name, 0) - len(left[name])) for name, walked in before
        )

    def after(self, plan: Plan, epoch: int) -> Plan:
        """Return the plan after the end of an epoch."""
        if epoch == self.last_epoch(plan):
            return self.next_stage(plan, epoch + 1)
        if plan[-1].order == ORDER:
            return plan
        taken, walked = self.after_epoch(plan, epoch)
        return (*plan, Segment(plan[-1].stage, epoch + 1, taken, walked))

    def next_stage(self, plan: Plan, epoch: int, done: int = 0) -> Plan:
        """Return the plan if the stage ends before an epoch, or after `done` batches of it.

        The next stage begins with that epoch, or with the one after the epoch that is cut.
        """
        segment = plan[-1]
        last = epoch if done else epoch - 1
        taken = self._span(plan, last)[1] if last >= segment.epoch else segment.taken
        walked = self._walked(plan, taken)
        return (*plan, Segment(segment.stage + 1, last + 1, 0, walked, done or None))

    def has_next_stage(self, plan: Plan) -> bool:
        """Return whether there is a stage after that in which a plan ends."""
        return plan[-1].stage + 1 < len(self.stages)

    def after_epoch(self, plan: Plan, epoch: int) -> tuple[int, tuple[int, ...]]:
        """Return how many pairs of the stage, and of each corpus, are taken after an epoch."""
        taken = self._span(plan, epoch)[1]
        return taken, self._walked(plan, taken)


def _passes(first: int, count: int, size: int) -> int:
    """Return in how many passes through a corpus of `size` pairs the next `count` pairs lie."""
    return (first + count - 1) // size - first // size + 1 if count else 0
