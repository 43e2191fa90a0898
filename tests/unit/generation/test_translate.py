"""From lines to lines: order, empty and long lines, batches, shares of several ranks."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from ds_seq.errors import UserError
from ds_seq.generation import translate as translate_module
from ds_seq.generation.translate import (
    BatchLimits,
    LongLines,
    Share,
    Translations,
    cut_batches,
    plan_lines,
    search_batches,
    search_plan,
    translate,
)
from ds_seq.text.tokenizer import Tokenizers
from tests.unit.search.table_model import EOS, PAD, SYMBOLS, TableModel, WordTokenizer, words
from tests.values import batch_limits, beam_search

VOCAB = 9
CPU = torch.device("cpu")
SEARCH = beam_search(SYMBOLS, beam=2)
LIMITS = batch_limits()
SMALL = batch_limits(max_tokens=20)


def draw_lines(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join(f"w{draw.randrange(4, VOCAB)}" for _ in range(draw.randrange(1, 12)))
        for _ in range(count)
    ]


def run(lines: list[str], limits: BatchLimits = LIMITS) -> Translations:
    translations = translate(TableModel(VOCAB), words(VOCAB), lines, SEARCH, limits, CPU)
    assert translations is not None
    return translations


def one_by_one(lines: list[str]) -> list[str]:
    return [run([line]).lines[0] for line in lines]


def test_output_is_in_the_order_of_the_input() -> None:
    lines = draw_lines(30)
    expected = one_by_one(lines)
    assert run(lines).lines == expected
    assert run(lines[::-1]).lines == expected[::-1]
    assert len(set(expected)) > 20


@pytest.mark.parametrize("limits", [batch_limits(max_sentences=1), batch_limits(max_tokens=20)])
def test_output_does_not_depend_on_the_batches(limits: BatchLimits) -> None:
    lines = draw_lines(20)
    assert run(lines, limits).lines == run(lines).lines


def test_empty_lines_stay_empty() -> None:
    first, second = draw_lines(2)
    expected = one_by_one([first, second])
    lines = ["", first, "   ", second, ""]
    assert run(lines).lines == ["", expected[0], "", expected[1], ""]
    assert run(["", ""]).lines == ["", ""]
    assert run([]).lines == []


def test_a_long_line_is_cut_and_reported() -> None:
    long = " ".join(draw_lines(800))
    assert len(long.split()) > 4000
    limits = batch_limits(max_tokens=64, max_source_length=10)
    short = " ".join(long.split()[:9])
    translations = run(["w4", long, short], limits)
    assert translations.cut == [2]
    assert translations.lines[1] == translations.lines[2] != ""


class Recorder(TableModel):
    """Remembers the batches."""

    def __init__(self) -> None:
        super().__init__(VOCAB)
        self.batches: list[Tensor] = []

    def encode(self, source: Tensor, source_mask: Tensor) -> Tensor:
        self.batches.append(source)
        return super().encode(source, source_mask)


def test_batches_are_full_but_within_limits() -> None:
    model, lines = Recorder(), draw_lines(60)
    limits = batch_limits(max_tokens=40, max_sentences=7)
    translate(model, words(VOCAB), lines, SEARCH, limits, CPU)
    sizes = [src.shape for src in model.batches]
    assert all(rows * width <= 40 and rows <= 7 for rows, width in sizes)
    assert sum(rows for rows, _ in sizes) == len(lines)
    assert sum(src.eq(EOS).sum() for src in model.batches) == len(lines)
    for (rows, width), following in zip(sizes, model.batches[1:], strict=False):
        assert (rows + 1) * width > 40 or rows == 7, "had room for one more"
        assert following.size(1) <= width
    padding = sum(int(src.eq(PAD).sum()) for src in model.batches)
    assert padding < 0.1 * sum(src.numel() for src in model.batches)


def test_rounds_without_a_batch_are_not_reported() -> None:
    """A rank that is through takes part in the forwards of others, with nothing to show for it."""
    sources = [[4, 5, EOS], [6, EOS], [7, 8, 4, EOS]]
    batches = cut_batches(np.array([3, 2, 4]), batch_limits(max_sentences=2))
    # what the others say at the end of each search and after this rank's batches
    others = iter([False, False, True, False, True, False, False])
    model = Recorder()
    told = [
        (batch.tolist(), len(found))
        for batch, found in search_batches(
            model, SEARCH, batches, sources.__getitem__, CPU, lambda flag: flag or next(others)
        )
    ]
    assert told == [([2, 0], 2), ([1], 1)]
    assert len(model.batches) == 4 and next(others, None) is None


def test_a_sentence_larger_than_a_batch_goes_alone() -> None:
    lines = ["w4 w5", " ".join(["w6"] * 30), "w7"]
    assert run(lines, batch_limits(max_tokens=8)).lines == run(lines).lines


def test_progress_counts_every_line_of_the_share() -> None:
    counts: list[int] = []
    lines = ["", *draw_lines(9)]
    limits = batch_limits(max_sentences=2)
    translate(TableModel(VOCAB), words(VOCAB), lines, SEARCH, limits, CPU, progress=counts.append)
    assert sum(counts) == len(lines)
    assert len(counts) > 4


@pytest.mark.parametrize("num_lines", [0, 1, 2, 11])
def test_shares_of_all_ranks_make_the_whole(
    num_lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks one after the other, as if their answers were gathered."""
    lines, expected = draw_lines(num_lines), run(draw_lines(num_lines))
    shares: list[object] = []
    dealt: list[list[list[list[int]]]] = []

    def gather(mine: object) -> list[object] | None:
        shares.append(mine)
        return shares if len(shares) == 3 else None

    monkeypatch.setattr(translate_module, "gather_objects", gather)
    answers = []
    for rank in range(3):
        model, share = Recorder(), Share(rank, 3)
        args = (words(VOCAB), lines, SEARCH, SMALL, CPU, share)
        answers.append(translate(model, *args))
        dealt.append([src.tolist() for src in model.batches])
    assert answers == [None, None, expected]
    # the same batches, so that a score is the same to the last digit
    in_turn = [batch for row in itertools.zip_longest(*dealt) for batch in row if batch is not None]
    alone = Recorder()
    translate(alone, words(VOCAB), lines, SEARCH, SMALL, CPU)
    assert in_turn == [src.tolist() for src in alone.batches]


def test_what_is_done_is_left_out_and_the_rest_shared() -> None:
    lines = ["", *draw_lines(20), "", "w4 w5 w6"]
    plan = plan_lines(WordTokenizer(VOCAB), lines, SMALL, first=100)
    whole = [list(batch) for batch in plan.batches]
    assert sorted(sum(whole, plan.silent)) == list(range(100, 100 + len(lines)))
    assert plan.silent == [100, 121] and plan.num_lines == len(lines)
    done = [100, *whole[1], whole[2][0], 122]
    parts = [plan.part(Share(rank, 3), done) for rank in range(3)]
    left = [number for part in parts for number in sum(map(list, part.batches), part.silent)]
    assert sorted([*left, *done]) == list(range(100, 100 + len(lines)))
    for part in parts:
        assert all(any(set(batch) <= set(old) for old in whole) for batch in part.batches)
        assert part.num_lines <= len(left) / 3 + 4


@pytest.mark.parametrize(
    ("long_lines", "searched"), [("truncate", [0, 1, 2]), ("skip", [0, 2]), ("error", None)]
)
def test_long_lines(long_lines: LongLines, searched: list[int] | None) -> None:
    lines = ["w4", "w5 " * 10, "w6 " * 9]  # 10 with the end symbol
    limits = batch_limits(max_source_length=10)
    if searched is None:
        with pytest.raises(
            UserError, match=r"^line 12: has 10 tokens, the model takes 9; .*--long"
        ):
            plan_lines(WordTokenizer(VOCAB), lines, limits, long_lines, first=10)
        return
    plan = plan_lines(WordTokenizer(VOCAB), lines, limits, long_lines)
    found = sorted(sum(search_plan(TableModel(VOCAB), plan, SEARCH, CPU), []))
    assert [one.line for one in found] == [0, 1, 2]
    assert [one.cut for one in found] == [False, True, False]
    assert [one.line for one in found if one.source] == searched
    assert [one.line for one in found if one.hypotheses[0].tokens] == searched
    assert all(len(one.source) <= 10 for one in found)


def test_translations_never_hold_a_line_break() -> None:
    class Bytes(WordTokenizer):
        def decode(self, ids: list[int]) -> str:
            return "a\nb\r\nc\n"

    args = (SEARCH, LIMITS, CPU)
    translations = translate(TableModel(VOCAB), Tokenizers.shared(Bytes(VOCAB)), ["w4"], *args)
    assert translations is not None
    assert translations.lines == ["a b  c"]
