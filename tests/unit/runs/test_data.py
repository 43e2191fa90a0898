"""Shards whose sources lack the language tag that a model reads are reported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ds_seq.data.binarize import binarize
from ds_seq.data.shards import ShardReader
from ds_seq.runs.card import ModelCard
from ds_seq.runs.data import untagged_warning
from ds_seq.text.tokenizer import Tokenizers
from tests.data.vocabulary import train_vocab
from tests.unit.runs.made import experiment
from tests.values import SHARD_SIZE


@pytest.mark.parametrize(
    ("untagged", "router", "words"),
    [
        ([], "softmax", None),
        ([7, 8], "softmax", r"2 of 20 source line\(s\) begin with no language tag .*<2de>"),
        (range(20), "softmax", None),  # a model with tags reads text without any
        (range(20), "language", r"20 of 20 source line\(s\) begin with no language tag"),
    ],
)
def test_untagged_sources(
    tmp_path: Path, untagged: list[int], router: str, words: str | None
) -> None:
    lines = ["the man" if n in untagged else "<2de> the man" for n in range(20)]
    sides = tmp_path / "train.en", tmp_path / "train.de"
    for side in sides:
        side.write_text("\n".join(lines) + "\n", encoding="utf-8")
    vocab = train_vocab(list(sides), tmp_path / "vocab.model", 13, user_symbols=["<2de>"])
    both = Tokenizers.shared(vocab)
    binarize(both, *sides, tmp_path, "train", languages=("en", "de"), shard_size=SHARD_SIZE)
    config = experiment({"moe": {"num_experts": 2, "top_k": 1, "router": router}},
        vocab={"size": 13, "user_symbols": ["<2de>"]})  # fmt: skip
    found = untagged_warning(ShardReader(tmp_path, "train"), ModelCard.of_experiment(config, both))
    assert (found is None) == (words is None)
    assert words is None or re.search(words, found or "")
