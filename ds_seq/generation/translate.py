"""From lines of text to lines of translations, on one rank or shared out over many.

Training-time validation comes through `translate`; `ds-seq generate`, which wants more than the
best text and keeps what is done, through its parts `plan_lines` and `search_plan`. Who has ids
already cuts them with `cut_batches` and searches with `search_batches`.

Batches are cut from the whole input and dealt out to the ranks, so that their content, and with it
each digit of a score, is the same for any number of ranks.

Shapes: B sentences, S source length.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ds_seq.data.batch import pad_rows
from ds_seq.distributed import gather_objects
from ds_seq.errors import UserError
from ds_seq.generation.memory import Room, try_search
from ds_seq.generation.output import plain_text
from ds_seq.generation.workers import map_in_threads
from ds_seq.names import LongLines
from ds_seq.search.beam_search import AnyRank, BeamSearch, CacheT, Decodable, EncodedT
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.text.tokenizer import Tokenizer, Tokenizers

_ENCODED_AT_ONCE = 4096


@dataclass(frozen=True)
class BatchLimits:
    """How large a batch of sources may be.

    Attributes:
        max_tokens: sentences times the longest source, end symbols included.
        max_sentences: sentences.
        max_source_length: tokens of a source, end symbol included; longer ones are cut.
    """

    max_tokens: int
    max_sentences: int
    max_source_length: int


@dataclass(frozen=True)
class Share:
    """Which part of the work this process does.

    Attributes:
        rank: number of this process among those that share the work.
        world_size: how many they are; with more than one, all of them must call `translate`.
        any_rank: see `BeamSearch.search`. To be given when a forward pass is a collective; ranks
            then also go through the same number of batches. Otherwise no rank waits for another
            before all of its own lines are translated.
    """

    rank: int = 0
    world_size: int = 1
    any_rank: AnyRank | None = None


ALONE = Share()
"""The whole work for this process."""


class Translations(NamedTuple):
    """What `translate` answers."""

    lines: list[str]
    """One for each input line, in the order of the input."""
    cut: list[int]
    """Numbers of the input lines, from 1, that were too long and translated only in part."""


class LineResult(NamedTuple):
    """What was found for a line."""

    line: int
    """Its number in the input, from 0."""
    source: list[int]
    """The ids that were searched for, end symbol included; none for a line without text."""
    hypotheses: list[Hypothesis]
    """At least one, the best first; a line without text has an empty one of score 0."""
    cut: bool
    """Whether it was too long, and searched only in part or not at all."""


@dataclass(frozen=True)
class SearchPlan:
    """What is to be searched, all of it or a process's part.

    Attributes:
        batches: numbers of the lines of each batch, the longest first.
        silent: numbers of the lines for which nothing is searched.
        sources: ids of all lines that are searched, end symbols included.
        long: numbers of all lines that are too long.
    """

    batches: list[NDArray[np.int64]]
    silent: list[int]
    sources: dict[int, NDArray[np.int32]]
    long: frozenset[int]

    @property
    def num_lines(self) -> int:
        """How many lines there are."""
        return len(self.silent) + sum(map(len, self.batches))

    def part(self, share: Share, done: Collection[int] = ()) -> SearchPlan:
        """A process's part of what is not done yet, given the numbers of the lines that are."""
        finished = np.array(list(done), np.int64)
        left = [batch[np.isin(batch, finished, invert=True)] for batch in self.batches]
        left = [batch for batch in left if len(batch)]
        silent = sorted({*self.silent}.difference(done))
        mine = slice(share.rank, None, share.world_size)
        return SearchPlan(left[mine], silent[mine], self.sources, self.long)


_Searched = tuple[NDArray[np.int64], list[list[Hypothesis]]]
"""Numbers of sentences, and what was found for each."""

_MOST_SHARE = 8  # a batch holds at most this part of the sentences, but 32 in any case
_NO_TEXT = [Hypothesis([], 0.0, [])]

AnswerT = TypeVar("AnswerT")


def translate(
    model: Decodable[EncodedT, CacheT],
    tokenizers: Tokenizers,
    lines: Sequence[str],
    search: BeamSearch,
    limits: BatchLimits,
    device: torch.device,
    share: Share = ALONE,
    progress: Callable[[int], object] | None = None,
) -> Translations | None:
    """Translate lines of text.

    Lines are sorted by length and cut into batches, which are dealt out to the ranks in turn, so
    that all have about the same work.

    Args:
        model: in evaluation mode.
        tokenizers: the source's makes ids of text, the target's makes text of ids.
        lines: the whole input, the same on every rank; a line without text gives an empty line.
        search: how to search.
        limits: size of batches and of sentences.
        device: where the model is.
        share: this process's part of the work.
        progress: called with the number of lines that this rank has done since the last call.

    Returns:
        The translations on rank 0, None on other ranks.
    """
    plan = plan_lines(tokenizers.source, lines, limits).part(share)
    found = search_plan(model, plan, search, device, share.any_rank)
    gathered = gather_lines(
        found,
        lambda one: plain_text(tokenizers.target, one.hypotheses[0].tokens),
        share,
        progress,
    )
    return None if gathered is None else Translations(*gathered)


def plan_lines(
    tokenizer: Tokenizer,
    lines: Sequence[str],
    limits: BatchLimits,
    long_lines: LongLines = "truncate",
    first: int = 0,
) -> SearchPlan:
    """Make ids of lines, and cut these into batches.

    Args:
        tokenizer: of the source.
        lines: text.
        limits: size of batches and of sentences; a batch is an eighth of the lines at most.
        long_lines: what becomes of lines longer than `limits` allow.
        first: number of the first of these lines in the whole input, from 0.

    Raises:
        UserError: a line is too long and `long_lines` says that this is an error.
    """
    sources, long = _encode(tokenizer, lines, limits.max_source_length, long_lines, first)
    numbers = np.array(list(sources), np.int64)
    lengths = np.array([len(ids) for ids in sources.values()], np.int64)
    # enough batches for searches side by side, however many there are
    most = min(limits.max_sentences, max(len(numbers) // _MOST_SHARE, 32))
    limits = replace(limits, max_sentences=most)
    batches = [numbers[batch] for batch in cut_batches(lengths, limits)]
    silent = [line for line in range(first, first + len(lines)) if line not in sources]
    return SearchPlan(batches, silent, sources, long)


def search_plan(
    model: Decodable[EncodedT, CacheT],
    plan: SearchPlan,
    search: BeamSearch,
    device: torch.device,
    any_rank: AnyRank | None = None,
    workers: int = 1,
) -> Iterator[list[LineResult]]:
    """Search what was planned; see `search_batches` for the other arguments.

    Yields:
        What was found for the lines of a batch; at first for all lines without text.
    """
    if plan.silent:
        yield [LineResult(line, [], _NO_TEXT, line in plan.long) for line in plan.silent]

    def source(line: int) -> list[int]:
        ids: list[int] = plan.sources[line].tolist()
        return ids

    for batch, found in search_batches(
        model, search, plan.batches, source, device, any_rank, workers
    ):
        yield [
            LineResult(line, source(line), hypotheses, line in plan.long)
            for line, hypotheses in zip(batch.tolist(), found, strict=True)
        ]


def gather_lines(
    found: Iterable[list[LineResult]],
    answer: Callable[[LineResult], AnswerT],
    share: Share = ALONE,
    progress: Callable[[int], object] | None = None,
) -> tuple[list[AnswerT], list[int]] | None:
    """Bring the answers of all ranks into the order of the input.

    Args:
        found: what `search_plan` yields.
        answer: what is to be kept of a line; made where it was searched.
        share: as for `translate`.
        progress: called with the number of lines that this rank has done since the last call.

    Returns:
        On rank 0 an answer for each line, and the numbers, from 1, of the lines that were cut;
        None on other ranks.
    """
    done: dict[int, AnswerT] = {}
    cut: list[int] = []
    for batch in found:
        for one in batch:
            done[one.line] = answer(one)
            if one.cut:
                cut.append(one.line + 1)
        if progress is not None:
            progress(len(batch))
    shares = [(done, cut)] if share.world_size == 1 else gather_objects((done, cut))
    if shares is None:
        return None
    merged: dict[int, AnswerT] = {}
    for answers, _ in shares:
        merged |= answers
    in_order = [merged[line] for line in range(len(merged))]
    return in_order, sorted(number for _, numbers in shares for number in numbers)


def cut_batches(lengths: NDArray[np.integer], limits: BatchLimits) -> list[NDArray[np.int64]]:
    """Cut sentences into batches of similar length.

    Args:
        lengths: (N,) tokens of each sentence, at least 1.
        limits: size of the batches. A sentence larger than a batch goes alone.

    Returns:
        Numbers of the sentences of each batch, the longest first: memory runs out at once or never.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        width = int(lengths[order[start]])
        size = max(1, min(limits.max_sentences, limits.max_tokens // width))
        batches.append(order[start : start + size])
        start += size
    return batches


def search_batches(
    model: Decodable[EncodedT, CacheT],
    search: BeamSearch,
    batches: Sequence[NDArray[np.int64]],
    source: Callable[[int], list[int]],
    device: torch.device,
    any_rank: AnyRank | None = None,
    workers: int = 1,
) -> Iterator[_Searched]:
    """Search batch by batch.

    Args:
        model: in evaluation mode.
        search: how to search.
        batches: numbers of the sentences of each batch, this process's only. Sampling draws by
            them: they are to be numbers in the whole input, not in this process's share.
        source: the ids of a sentence, its end symbol included.
        device: where the model is.
        any_rank: see `Share.any_rank`.
        workers: how many batches are searched at a time, see `ds_seq.generation.workers`; with
            `any_rank` always one.

    Yields:
        Batches with the hypotheses of their sentences, as `BeamSearch.search` gives them. A batch
        for which memory does not suffice comes in parts.

    Raises:
        UserError: memory does not suffice for one sentence, or for a batch under `any_rank`: the
            other ranks are in the middle of theirs and cannot go back.
    """
    room = Room()

    def search_batch(batch: NDArray[np.int64]) -> list[_Searched]:
        """One batch, in parts where memory does not suffice for all of it."""
        done: list[_Searched] = []
        waiting = [batch]
        while waiting:
            part = waiting.pop()
            rows = [source(int(i)) for i in part]
            size = len(rows) * max(map(len, rows), default=0)
            if any_rank is None and len(part) > 1 and not room.holds(size):
                waiting += np.array_split(part, 2)[::-1]
                continue
            source_ids, mask = pad_rows(rows, search.symbols.pad).to(device)
            found = try_search(model, search, source_ids, mask, any_rank, part.tolist())
            if found is None:
                room.overflow(part, size, any_rank)
                waiting.append(part)
            elif len(part):
                done.append((part, found))
        return done

    # a collective wants all ranks to search their batches in the same order
    at_once = 1 if any_rank is not None else min(workers, max(len(batches), 1))
    for parts in map_in_threads(search_batch, _in_step(batches, any_rank), at_once):
        yield from parts


def _encode(
    tokenizer: Tokenizer, lines: Sequence[str], max_length: int, long_lines: LongLines, first: int
) -> tuple[dict[int, NDArray[np.int32]], frozenset[int]]:
    """Ids of the lines that are to be searched, and which lines are too long; by number."""
    sources, long = {}, set()
    for start in range(0, len(lines), _ENCODED_AT_ONCE):
        block = lines[start : start + _ENCODED_AT_ONCE]
        for line, ids in enumerate(tokenizer.encode_lines(block), first + start):
            if len(ids) >= max_length:
                long.add(line)
                if long_lines == "error":
                    raise UserError(
                        f"line {line + 1}: has {len(ids):,} tokens, the model takes "
                        f"{max_length - 1:,}; shorten it, or say --long-lines truncate or skip"
                    )
                ids = [] if long_lines == "skip" else ids[: max_length - 1]
            if ids:
                sources[line] = np.array([*ids, tokenizer.symbols.eos], np.int32)
    return sources, frozenset(long)


def _in_step(
    batches: Iterable[NDArray[np.int64]], any_rank: AnyRank | None
) -> Iterator[NDArray[np.int64]]:
    """The batches; with `any_rank` followed by empty ones until every rank is through its own."""
    for batch in batches:
        if any_rank is not None:
            any_rank(True)
        yield batch
    while any_rank is not None and any_rank(False):
        yield np.zeros(0, np.int64)
