"""A router by language is not trained on sources that do not say their language."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_seq.data.batch import ParallelDataset
from ds_seq.data.binarize import binarize
from ds_seq.data.shards import ShardReader
from ds_seq.errors import UserError
from ds_seq.tasks import build_task
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.training.inputs import check_tags
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab
from tests.unit.runs.made import experiment
from tests.values import SHARD_SIZE


@pytest.mark.parametrize("untagged", [None, 7])
@pytest.mark.parametrize("router", ["language", "softmax"])
def test_training_sources_need_tags(tmp_path: Path, untagged: int | None, router: str) -> None:
    write_toy(tmp_path, 100, 10)
    sides = [tmp_path / "train.en", tmp_path / "train.de"]
    vocab = train_vocab(sides, tmp_path / "vocab.model", 130, user_symbols=["<2de>"])
    lines = sides[0].read_text(encoding="utf-8").splitlines()
    tagged = [line if n == untagged else f"<2de> {line}" for n, line in enumerate(lines)]
    sides[0].write_text("\n".join(tagged) + "\n", encoding="utf-8")
    languages = ("en", "de")
    both = Tokenizers.shared(vocab)
    binarize(both, *sides, tmp_path, "train", languages=languages, shard_size=SHARD_SIZE)
    symbols = {"size": 130, "user_symbols": ["<2de>"]}
    moe = {"num_experts": 2, "top_k": 1, "router": router}
    config = experiment({"moe": moe}, dir=str(tmp_path), vocab=symbols)
    task = build_task(config.task, config.data)
    datasets = {"training": ParallelDataset(ShardReader(tmp_path, "train")), "validation": None}
    if router == "softmax" or untagged is None:
        check_tags(config, task, datasets)
        return
    expected = r"model.moe.router: language .* 1 of 100 training sources .* \(the first is pair 8\)"
    with pytest.raises(UserError, match=expected):
        check_tags(config, task, datasets)
