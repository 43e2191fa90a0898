"""A vocabulary on disk, as `ds-seq prepare` leaves one, for tests that need no more of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_seq.text.sentencepiece import SentencePieceTokenizer


def train_vocab(
    files: Sequence[str | Path],
    path: str | Path,
    size: int,
    model_type: str = "unigram",
    character_coverage: float = 1.0,
    input_sentence_size: int = 0,
    normalization: str = "identity",
    byte_fallback: bool = False,
    **options: Any,
) -> SentencePieceTokenizer:
    """Train a SentencePiece model and write it to `path`."""
    tokenizer = SentencePieceTokenizer.train(
        files,
        size=size,
        model_type=model_type,
        character_coverage=character_coverage,
        input_sentence_size=input_sentence_size,
        normalization=normalization,
        byte_fallback=byte_fallback,
        **options,
    )
    tokenizer.save(path)
    return tokenizer
