"""Tokenizers by the `data.vocab.name` that asks for them: trained, read and made again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_seq.config.data import DataConfig
from ds_seq.errors import UserError
from ds_seq.names import SENTENCEPIECE
from ds_seq.plugins import find_plugin
from ds_seq.text.normalize import Normalizer
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.sentencepiece_training import PAD_ID
from ds_seq.text.tokenizer import Tokenizer, TokenizerKind, Tokenizers
from ds_seq.text.vocab_file import read_vocab_file

TOKENIZERS: dict[str, TokenizerKind[Tokenizer]] = {SENTENCEPIECE: SentencePieceTokenizer}


def build_normalizer(data: DataConfig) -> Normalizer:
    """Return how a config normalizes text, for training and for use."""
    return Normalizer(data.clean.nfkc)


def train_tokenizer(data: DataConfig, files: Sequence[Path]) -> Tokenizer:
    """Learn the tokenizer of a config from clean text, ours or an external `package.module:Name`.

    Raises:
        UserError: there is none of that name, or the text does not suffice.
    """
    tokenizer = _kind(data).train(
        files,
        size=data.vocab.size,
        user_symbols=data.vocab.user_symbols,
        normalizer=build_normalizer(data),
        **_options(data),
    )
    return _checked(tokenizer, data.vocab.name)


def load_tokenizers(data: DataConfig, path: str | Path) -> Tokenizers:
    """Read the tokenizers of a config from a `vocab.model`, which serves both sides.

    Raises:
        UserError: there is no such file, or it is of another kind.
    """
    return read_tokenizers(data, read_vocab_file(path), str(path))


def read_tokenizers(data: DataConfig, content: bytes, name: str) -> Tokenizers:
    """Make the tokenizers of a config again from their bytes.

    Args:
        data: says which kind they are and how text is normalized.
        content: what `Tokenizer.to_bytes` gave.
        name: what to call the content in error messages.

    Raises:
        UserError: it is of another kind.
    """
    normalizer = build_normalizer(data)
    tokenizer = _kind(data).from_bytes(content, normalizer=normalizer, name=name)
    return Tokenizers.shared(_checked(tokenizer, name))


def _kind(data: DataConfig) -> TokenizerKind[Tokenizer]:
    return find_plugin("data.vocab", data.vocab.name, TOKENIZERS)


def _checked(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """Refuse padding that models would take for a word: its id is fixed in them."""
    if (pad := tokenizer.symbols.pad) != PAD_ID:
        raise UserError(f"{name}: pads with id {pad}; models know no padding but id {PAD_ID}")
    return tokenizer


def _options(data: DataConfig) -> dict[str, Any]:
    """Return what the kind that a config names knows beyond size and user symbols."""
    if data.vocab.name != SENTENCEPIECE:
        return data.vocab.options
    return {
        "model_type": data.vocab.model_type,
        "character_coverage": data.vocab.character_coverage,
        "input_sentence_size": data.vocab.input_sentence_size,
    }
