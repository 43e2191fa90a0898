"""A generated corpus, its vocabulary and its shards, made once for all tests of data."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_seq.data.binarize import binarize
from ds_seq.data.shards import ShardReader
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab

NUM_PAIRS = 300


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with {train,valid,test}.{en,de}; not to be written to."""
    folder = tmp_path_factory.mktemp("corpus")
    write_toy(folder, NUM_PAIRS, 20)
    return folder


@pytest.fixture(scope="session")
def vocab(corpus: Path) -> SentencePieceTokenizer:
    files = [corpus / "train.en", corpus / "train.de"]
    return train_vocab(files, corpus / "vocab.model", 130)


@pytest.fixture(scope="session")
def shards(corpus: Path, vocab: SentencePieceTokenizer) -> Path:
    """A folder with the training pairs in four shards; not to be written to."""
    folder = corpus / "shards"
    source, target = corpus / "train.en", corpus / "train.de"
    binarize(
        Tokenizers.shared(vocab),
        source,
        target,
        folder,
        "train",
        languages=("en", "de"),
        shard_size=80,
    )
    return folder


@pytest.fixture
def reader(shards: Path, vocab: SentencePieceTokenizer) -> ShardReader:
    return ShardReader(shards, "train", vocab.fingerprint)
