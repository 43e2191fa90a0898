"""Shards whose sources lack the language tag that a model reads are reported."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    ("tag", "untagged", "router", "chosen", "words"),
    [
        ("<2de>", [], "softmax", None, None),
        ("<2de>", [7, 8], "softmax", None, r"2 of 20 source line\(s\) begin with no .*<2de>"),
        # a model with tags reads text without any
        ("<2de>", range(20), "softmax", None, None),
        ("<2de>", range(20), "language", None, r"20 of 20 source line\(s\) begin with no"),
        ("<2de>", [7], "softmax", [], None),
        ("DE:", [7], "softmax", None, None),
        ("DE:", [7], "softmax", ["DE:"], r"1 of 20 source line\(s\) begin with no .*\(DE:\)"),
    ],
)
def test_untagged_sources(
    tmp_path: Path,
    tag: str,
    untagged: Sequence[int],
    router: str,
    chosen: list[str] | None,
    words: str | None,
) -> None:
    lines = ["the man" if n in untagged else f"{tag} the man" for n in range(20)]
    sides = tmp_path / "train.en", tmp_path / "train.de"
    for side in sides:
        side.write_text("\n".join(lines) + "\n", encoding="utf-8")
    vocab = train_vocab(list(sides), tmp_path / "vocab.model", 13, user_symbols=[tag])
    both = Tokenizers.shared(vocab)
    binarize(both, *sides, tmp_path, "train", languages=("en", "de"), shard_size=SHARD_SIZE)
    moe = {"num_experts": 2, "top_k": 1, "router": router}
    symbols = {"size": 13, "user_symbols": [tag]}
    config = experiment({"moe": moe}, vocab=symbols, language_tags=chosen)
    found = untagged_warning(ShardReader(tmp_path, "train"), ModelCard.of_experiment(config, both))
    assert (found is None) == (words is None)
    assert words is None or re.search(words, found or "")
