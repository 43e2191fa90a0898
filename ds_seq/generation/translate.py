"""Translate lines of text, on one rank or distributed over many.

Validation during training uses `translate`. `ds-seq generate`, which writes more than the best text
and stores finished lines, uses the parts `plan_lines` and `search_plan`. Callers that already have
ids use `cut_batches` and `search_batches`.

Batches are cut from the whole input and then distributed over the ranks, so that their content, and
therefore each digit of a score, is the same for any number of ranks.

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
    """The largest size of a batch of sources.

    Attributes:
        max_tokens: most padded tokens of a batch: its number of sentences times the length of its
            longest source, including end symbols.
        max_sentences: most sentences of a batch.
        max_source_length: most tokens of a source, including the end symbol; longer sources are
            truncated.
    """

    max_tokens: int
    max_sentences: int
    max_source_length: int


@dataclass(frozen=True)
class Share:
    """This process's part of the work.

    Attributes:
        rank: rank of this process among those that share the work.
        world_size: number of processes that share the work; all of them must call `translate`.
        any_rank: see `BeamSearch.search`. Required if a forward pass is a collective; all ranks
            then search the same number of batches. Otherwise, no rank waits for another before all
            of its own lines are translated.
    """

    rank: int = 0
    world_size: int = 1
    any_rank: AnyRank | None = None


ALONE = Share()
"""The share of a single process: all of the work."""


class Translations(NamedTuple):
    """The result of `translate`."""

    lines: list[str]
    """The translation of each input line, in the order of the input."""
    cut: list[int]
    """Numbers, from 1, of the input lines that were too long and were translated only in part."""


class LineResult(NamedTuple):
    """The search result of a line."""

    line: int
    """Number of the line in the input, from 0."""
    source: list[int]
    """Source ids, including the end symbol; empty for a line without text."""
    hypotheses: list[Hypothesis]
    """At least one hypothesis, the best first; a line without text has an empty one of score 0."""
    cut: bool
    """Whether the line was too long and was searched only in part or not at all."""


@dataclass(frozen=True)
class SearchPlan:
    """The lines to search, all of them or a process's part, in batches.

    Attributes:
        batches: numbers of the lines of each batch, the longest first.
        silent: numbers of the lines that need no search.
        sources: ids of all lines to search, including end symbols.
        long: numbers of all lines that are too long.
    """

    batches: list[NDArray[np.int64]]
    silent: list[int]
    sources: dict[int, NDArray[np.int32]]
    long: frozenset[int]

    @property
    def num_lines(self) -> int:
        """Number of lines."""
        return len(self.silent) + sum(map(len, self.batches))

    def part(self, share: Share, done: Collection[int] = ()) -> SearchPlan:
        """Return a process's part of the plan, without the lines whose numbers are in `done`."""
        finished = np.array(list(done), np.int64)
        left = [batch[np.isin(batch, finished, invert=True)] for batch in self.batches]
        left = [batch for batch in left if len(batch)]
        silent = sorted({*self.silent}.difference(done))
        turns = slice(share.rank, None, share.world_size)
        return SearchPlan(left[turns], silent[turns], self.sources, self.long)


_Searched = tuple[NDArray[np.int64], list[list[Hypothesis]]]
"""Numbers of the sentences of a batch, and the hypotheses of each."""

_MOST_SHARE = 8  # a batch has at most one in this many sentences, but always up to 32
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

    Lines are sorted by length and cut into batches, which are assigned to the ranks in turn, so
    that all ranks have about the same amount of work.

    Args:
        model: the model, in evaluation mode.
        tokenizers: tokenizers of source and target.
        lines: the whole input, the same on every rank; a line without text gives an empty line.
        search: the search.
        limits: size of batches and of sentences.
        device: device of the model.
        share: this process's part of the work.
        progress: called with the number of lines that this rank has finished since the last call.

    Returns:
        The translations on rank 0, None on other ranks.
    """
    plan = plan_lines(tokenizers.source, lines, limits).part(share)
    results = search_plan(model, plan, search, device, share.any_rank)
    gathered = gather_lines(
        results,
        lambda result: plain_text(tokenizers.target, result.hypotheses[0].tokens),
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
    """Encode lines and cut them into batches.

    Args:
        tokenizer: tokenizer of the source.
        lines: lines of text.
        limits: size of batches and of sentences; a batch has at most an eighth of the lines.
        long_lines: treatment of lines longer than `limits` allow.
        first: number of the first of these lines in the whole input, from 0.

    Raises:
        UserError: a line is too long and `long_lines` makes that an error.
    """
    sources, long = _encode(tokenizer, lines, limits.max_source_length, long_lines, first)
    numbers = np.array(list(sources), np.int64)
    lengths = np.array([len(ids) for ids in sources.values()], np.int64)
    # enough batches for all parallel searches
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
    """Search the batches of a plan; see `search_batches` for the other arguments.

    Yields:
        The results of a batch; the first batch has all lines that need no search.
    """
    if plan.silent:
        yield [LineResult(line, [], _NO_TEXT, line in plan.long) for line in plan.silent]

    def source(line: int) -> list[int]:
        ids: list[int] = plan.sources[line].tolist()
        return ids

    for batch, hypotheses_of_batch in search_batches(
        model, search, plan.batches, source, device, any_rank, workers
    ):
        yield [
            LineResult(line, source(line), hypotheses, line in plan.long)
            for line, hypotheses in zip(batch.tolist(), hypotheses_of_batch, strict=True)
        ]


def gather_lines(
    batches: Iterable[list[LineResult]],
    answer: Callable[[LineResult], AnswerT],
    share: Share = ALONE,
    progress: Callable[[int], object] | None = None,
) -> tuple[list[AnswerT], list[int]] | None:
    """Gather the results of all ranks in the order of the input.

    Args:
        batches: results that `search_plan` yields.
        answer: returns what to gather of a line; called on the rank that searched it.
        share: this process's part of the work.
        progress: called with the number of lines that this rank has finished since the last call.

    Returns:
        On rank 0 the answer for each line, and the numbers, from 1, of the lines that were cut;
        None on other ranks.
    """
    done: dict[int, AnswerT] = {}
    cut: list[int] = []
    for batch in batches:
        for result in batch:
            done[result.line] = answer(result)
            if result.cut:
                cut.append(result.line + 1)
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
        lengths: number of tokens of each sentence, at least 1.
        limits: size of the batches; a sentence larger than a batch forms a batch of its own.

    Returns:
        Numbers of the sentences of each batch, the longest first, so that memory runs out at the
        start or never.
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
        model: the model, in evaluation mode.
        search: the search.
        batches: numbers of the sentences of each batch of this process. They seed sampling, so they
            must be numbers in the whole input, not in this process's share.
        source: returns the ids of a sentence, including its end symbol.
        device: device of the model.
        any_rank: see `Share.any_rank`.
        workers: number of batches searched in parallel, see `ds_seq.generation.workers`; always one
            with `any_rank`.

    Yields:
        Batches with the hypotheses of their sentences, as returned by `BeamSearch.search`. A batch
        that does not fit into memory is split.

    Raises:
        UserError: memory runs out for a single sentence, or for a batch with `any_rank`, where the
            other ranks are in the middle of the search and cannot restart.
    """
    room = Room()

    def search_batch(batch: NDArray[np.int64]) -> list[_Searched]:
        """Search one batch; split it if it does not fit into memory."""
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
            hypotheses = try_search(model, search, source_ids, mask, any_rank, part.tolist())
            if hypotheses is None:
                room.overflow(part, size, any_rank)
                waiting.append(part)
            elif len(part):
                done.append((part, hypotheses))
        return done

    # a collective requires all ranks to search their batches in the same order
    at_once = 1 if any_rank is not None else min(workers, max(len(batches), 1))
    for parts in map_in_threads(search_batch, _in_step(batches, any_rank), at_once):
        yield from parts


def _encode(
    tokenizer: Tokenizer, lines: Sequence[str], max_length: int, long_lines: LongLines, first: int
) -> tuple[dict[int, NDArray[np.int32]], frozenset[int]]:
    """Return the ids of the lines to search, and the lines that are too long, by number."""
    sources, long, symbols = {}, set(), tokenizer.symbols
    room = max_length - len(symbols.framed([]))
    for start in range(0, len(lines), _ENCODED_AT_ONCE):
        block = lines[start : start + _ENCODED_AT_ONCE]
        for line, ids in enumerate(tokenizer.encode_lines(block), first + start):
            if len(ids) > room:
                long.add(line)
                if long_lines == "error":
                    raise UserError(
                        f"line {line + 1}: has {len(ids):,} tokens, the model takes "
                        f"{room:,}; shorten it, or say --long-lines truncate or skip"
                    )
                ids = [] if long_lines == "skip" else ids[:room]
            if ids:
                sources[line] = np.array(symbols.framed(ids), np.int32)
    return sources, frozenset(long)


def _in_step(
    batches: Iterable[NDArray[np.int64]], any_rank: AnyRank | None
) -> Iterator[NDArray[np.int64]]:
    """Yield the batches; with `any_rank`, then empty ones until all ranks have finished theirs."""
    for batch in batches:
        if any_rank is not None:
            any_rank(True)
        yield batch
    while any_rank is not None and any_rank(False):
        yield np.zeros(0, np.int64)
