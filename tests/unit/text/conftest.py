"""A generated corpus and its vocabulary, made once for all tests of text."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with {train,valid,test}.{en,de}; not to be written to."""
    folder = tmp_path_factory.mktemp("corpus")
    write_toy(folder, 300, 20)
    return folder


@pytest.fixture(scope="session")
def vocab(corpus: Path) -> SentencePieceTokenizer:
    files = [corpus / "train.en", corpus / "train.de"]
    return train_vocab(files, corpus / "vocab.model", 130)
