"""From lines of text to lines of translations, on one rank or shared out over many.

Training-time validation comes through `translate`; `ds-seq generate`, which may want more than the
best text, through the two halves of it, `search_lines` and `gather_lines`. Who has ids already cuts
them with `cut_batches` and searches with `search_batches`.

Shapes: B sentences, S source length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds_seq.data.vocab import Vocab
from ds_seq.distributed import gather_objects
from ds_seq.generation.beam_search import AnyRank, BeamSearch, CacheT, Decodable, EncodedT
from ds_seq.generation.hypotheses import Hypothesis
from ds_seq.generation.output import plain_text


@dataclass(frozen=True)
class BatchLimits:
    """How large a batch of sources may be.

    Attributes:
        max_tokens: sentences times the longest source, end symbols included.
        max_sentences: sentences.
        max_source_length: tokens of a source, end symbol included; longer ones are cut.
    """

    max_tokens: int = 4096
    max_sentences: int = 128
    max_source_length: int = 1024


@dataclass(frozen=True)
class Share:
    """Which part of the lines this process translates.

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

    def size(self, num_lines: int) -> int:
        """How many of `num_lines` lines are this process's."""
        return len(range(self.rank, num_lines, self.world_size))


ALONE = Share()
"""The whole work for this process."""


class Translations(NamedTuple):
    """What `translate` answers."""

    lines: list[str]
    """One for each input line, in the order of the input."""
    cut: list[int]
    """Numbers of the input lines, from 1, that were too long and translated only in part."""


class Found(NamedTuple):
    """What was found for a line."""

    line: int
    """Its number in the input, from 0."""
    hypotheses: list[Hypothesis]
    """At least one, the best first; a line without text has an empty one of score 0."""
    cut: bool
    """Whether it was too long and searched only in part."""


_NO_TEXT = [Hypothesis([], 0.0, [])]

AnswerT = TypeVar("AnswerT")


def translate(
    model: Decodable[EncodedT, CacheT],
    vocab: Vocab,
    lines: Sequence[str],
    search: BeamSearch,
    limits: BatchLimits,
    device: torch.device,
    share: Share = ALONE,
    progress: Callable[[int], object] | None = None,
) -> Translations | None:
    """Translate lines of text.

    Lines are sorted by length and dealt out to the ranks in turn, so that all have about the same
    work. Each rank sorts its share into batches of similar length.

    Args:
        model: in evaluation mode.
        vocab: makes subwords of text, and text of subwords.
        lines: the whole input, the same on every rank; a line without text gives an empty line.
        search: how to search.
        limits: size of batches and of sentences.
        device: where the model is.
        share: this process's part of the work.
        progress: called with the number of lines that this rank has done since the last call.

    Returns:
        The translations on rank 0, None on other ranks.
    """
    found = search_lines(model, vocab, lines, search, limits, device, share)
    gathered = gather_lines(
        found, lambda one: plain_text(vocab, one.hypotheses[0].tokens), share, progress
    )
    return None if gathered is None else Translations(*gathered)


def search_lines(
    model: Decodable[EncodedT, CacheT],
    vocab: Vocab,
    lines: Sequence[str],
    search: BeamSearch,
    limits: BatchLimits,
    device: torch.device,
    share: Share = ALONE,
) -> Iterator[list[Found]]:
    """Search this process's share of lines of text; see `translate` for the arguments.

    Yields:
        What was found for the lines of a batch; at first for all lines without text.
    """
    by_length = sorted(range(len(lines)), key=lambda line: len(lines[line]))
    mine = by_length[share.rank :: share.world_size]
    sources, cut = _encode(vocab, lines, mine, limits.max_source_length)
    yield [Found(line, _NO_TEXT, False) for line in mine if line not in sources]
    numbers = np.array(list(sources), np.int64)
    lengths = np.array([len(ids) for ids in sources.values()], np.int64)
    batches = [numbers[batch] for batch in cut_batches(lengths, limits)]
    for batch, found in search_batches(
        model, search, batches, sources.__getitem__, device, share.any_rank
    ):
        yield [
            Found(line, hypotheses, line in cut)
            for line, hypotheses in zip(batch.tolist(), found, strict=True)
        ]


def gather_lines(
    found: Iterable[list[Found]],
    answer: Callable[[Found], AnswerT],
    share: Share = ALONE,
    progress: Callable[[int], object] | None = None,
) -> tuple[list[AnswerT], list[int]] | None:
    """Bring the answers of all ranks into the order of the input.

    Args:
        found: what `search_lines` yields.
        answer: what is to be kept of a line; made where it was searched.
        share: as for `search_lines`.
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
    batches: Iterable[NDArray[np.int64]],
    source: Callable[[int], list[int]],
    device: torch.device,
    any_rank: AnyRank | None = None,
) -> Iterator[tuple[NDArray[np.int64], list[list[Hypothesis]]]]:
    """Search batch by batch.

    Args:
        model: in evaluation mode.
        search: how to search.
        batches: numbers of the sentences of each batch, this process's only. Sampling draws by
            them: they are to be numbers in the whole input, not in this process's share.
        source: the ids of a sentence, its end symbol included.
        device: where the model is.
        any_rank: see `Share.any_rank`.

    Yields:
        Every batch with the hypotheses of its sentences, as `BeamSearch.search` gives them.
    """
    for batch in _in_step(batches, any_rank):
        src = _pad([source(int(i)) for i in batch], search.pad_id).to(device)
        found = search.search(model, src, any_rank, batch.tolist())
        if len(batch):
            yield batch, found


def _encode(
    vocab: Vocab, lines: Sequence[str], mine: list[int], max_length: int
) -> tuple[dict[int, list[int]], set[int]]:
    """Ids of those lines of `mine` that hold any text, and which of these were cut."""
    sources, cut = {}, set()
    for line, ids in zip(mine, vocab.encode_lines([lines[i] for i in mine]), strict=True):
        if not ids:
            continue
        if len(ids) >= max_length:
            cut.add(line)
            ids = ids[: max_length - 1]
        sources[line] = [*ids, vocab.eos_id]
    return sources, cut


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


def _pad(rows: list[list[int]], pad_id: int) -> Tensor:
    """Rows of ids as one tensor (B, S); (0, 1) for no rows."""
    width = max(map(len, rows), default=1)
    padded = [row + [pad_id] * (width - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int64).view(len(rows), width)
