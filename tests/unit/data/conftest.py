"""A generated corpus, its vocabulary and its shards, made once for all tests of data."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_seq.data.binarize import binarize
from ds_seq.data.shards import ShardReader
from ds_seq.data.vocab import Vocab, train_vocab
from tests.data.toy import write_toy

NUM_PAIRS = 300


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with {train,valid,test}.{en,de}; not to be written to."""
    folder = tmp_path_factory.mktemp("corpus")
    write_toy(folder, NUM_PAIRS, 20)
    return folder


@pytest.fixture(scope="session")
def vocab(corpus: Path) -> Vocab:
    files = [corpus / "train.en", corpus / "train.de"]
    return train_vocab(files, corpus / "vocab.model", 130)


@pytest.fixture(scope="session")
def shards(corpus: Path, vocab: Vocab) -> Path:
    """A folder with the training pairs in four shards; not to be written to."""
    folder = corpus / "shards"
    source, target = corpus / "train.en", corpus / "train.de"
    binarize(vocab, source, target, folder, "train", languages=("en", "de"), shard_size=80)
    return folder


@pytest.fixture
def reader(shards: Path, vocab: Vocab) -> ShardReader:
    return ShardReader(shards, "train", vocab.hash)
