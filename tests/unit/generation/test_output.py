"""The formats of `ds-seq generate`, line by line and as a whole."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
import torch

from ds_seq.generation.output import LineWriter, OutputFormat, plain_text
from ds_seq.generation.translate import gather_lines, plan_lines, search_plan
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.text.tokenizer import Tokenizers
from tests.unit.search.table_model import (
    SYMBOLS,
    UNK,
    TableModel,
    WordTokenizer,
    words,
)
from tests.values import batch_limits, beam_search

VOCAB = words(9)
SOURCE = ["w4 w5", "", "w6 odd"]
REFERENCE = ["w7", "", "odd w8 w8"]
TWO = [Hypothesis([7, UNK], -0.5, [-0.25, -1.0, -0.125]), Hypothesis([8], -0.75, [-1.5, 0.0])]


def write(
    form: OutputFormat, line: int, found: Sequence[Hypothesis], reference: bool = True
) -> str:
    return LineWriter(form, VOCAB, SOURCE, REFERENCE if reference else None)(line, found)


def test_text_is_the_best_alone() -> None:
    assert write("text", 0, TWO) == "w7 w3"


def test_tsv_counts_from_one() -> None:
    assert write("tsv", 2, TWO) == "3\t-0.500000\tw7 w3\n3\t-0.750000\tw8"


def test_json_holds_everything() -> None:
    text = write("jsonl", 2, TWO)
    assert "\n" not in text
    assert json.loads(text) == {
        "line": 3,
        "source": "w6 odd",
        "hypotheses": [
            {"text": "w7 w3", "score": -0.5, "token_scores": [-0.25, -1.0, -0.125]},
            {"text": "w8", "score": -0.75, "token_scores": [-1.5, 0.0]},
        ],
    }


def test_an_impossible_score_is_null_in_json() -> None:
    nothing = Hypothesis([], -math.inf, [-math.inf])
    (found,) = json.loads(write("jsonl", 0, [nothing]))["hypotheses"]
    assert found == {"text": "", "score": None, "token_scores": [None]}


def as_fairseq_prints(score: float) -> str:
    """fairseq formats single-precision tensors: the natural logarithm, divided in place."""
    return f"{torch.tensor(score) / math.log(2)}"


def test_fairseq_lines_of_a_sentence() -> None:
    best, second = (as_fairseq_prints(hypothesis.score) for hypothesis in TWO)
    assert best == "-0.7213475108146667"
    assert write("fairseq", 2, TWO).split("\n") == [
        "S-2\tw6 <unk>",
        "T-2\t<<unk>> w8 w8",
        f"H-2\t{best}\tw7 <unk>",
        f"D-2\t{best}\tw7 w3",
        "P-2\t-0.3607 -1.4427 -0.1803",
        f"H-2\t{second}\tw8",
        f"D-2\t{second}\tw8",
        "P-2\t-2.1640 0.0000",
    ]


def test_scores_have_the_digits_of_fairseq() -> None:
    drawn = (-9 * torch.rand(200, generator=torch.Generator().manual_seed(0))).tolist()
    for score in drawn:
        (line,) = (
            row
            for row in write("fairseq", 0, [Hypothesis([7], score, [score])]).split("\n")
            if row.startswith("H-")
        )
        assert line.split("\t")[1] == as_fairseq_prints(score)


def test_without_reference_there_is_no_line_of_it() -> None:
    rows = write("fairseq", 0, TWO[1:], reference=False).split("\n")
    assert [row[:3] for row in rows] == ["S-0", "H-0", "D-0", "P-0"]


@pytest.mark.parametrize(("form", "rows"), [("text", 3), ("tsv", 7), ("jsonl", 3), ("fairseq", 27)])
def test_lines_keep_their_order_and_place(form: OutputFormat, rows: int) -> None:
    """Three hypotheses of two lines and one of the empty line between them."""
    lines = ["w4 w5 w6 w7", "", "w8"]
    search = beam_search(SYMBOLS, beam=3, num_best=3)
    limits = batch_limits(max_sentences=1)
    writer = LineWriter(form, VOCAB, lines, lines)
    plan = plan_lines(VOCAB.source, lines, limits)
    found = search_plan(TableModel(9), plan, search, torch.device("cpu"))
    gathered = gather_lines(found, lambda one: writer(one.line, one.hypotheses))
    assert gathered is not None
    output = "\n".join(gathered[0]).split("\n")
    assert len(output) == rows
    empty = {
        "text": [""],
        "tsv": ["2\t0.000000\t"],
        "jsonl": [
            '{"line": 2, "source": "", '
            '"hypotheses": [{"text": "", "score": 0.0, "token_scores": []}]}'
        ],
        "fairseq": ["S-1\t", "T-1\t", "H-1\t0.0\t", "D-1\t0.0\t", "P-1\t"],
    }[form]
    before = (rows - len(empty)) // 2
    assert output[before:-before] == empty
    assert not set(empty) & {*output[:before], *output[-before:]}
    if form == "tsv":
        numbers, scores, _ = zip(*(row.split("\t") for row in output), strict=True)
        assert numbers == tuple("1112333")
        assert [float(score) for score in scores[:3]] == sorted(map(float, scores[:3]))[::-1]


def test_a_field_never_holds_a_tab_nor_a_text_a_line_break() -> None:
    class Bytes(WordTokenizer):
        def decode(self, ids: list[int]) -> str:
            return "a\tb\nc\r\n"

    assert plain_text(Bytes(9), [4]) == "a\tb c"
    writer = LineWriter("tsv", Tokenizers.shared(Bytes(9)), SOURCE)
    assert writer(0, TWO[1:]) == "1\t-0.750000\ta b c"
