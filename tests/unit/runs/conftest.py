"""One small text with a vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``{train,valid,test}.{en,de}``."""
    folder = tmp_path_factory.mktemp("text")
    write_toy(folder, 200, 10)
    return folder


@pytest.fixture(scope="session")
def vocab(text: Path, tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    """130 subwords."""
    file = tmp_path_factory.mktemp("vocab") / "vocab.model"
    return train_vocab([text / "train.en", text / "train.de"], file, 130)
