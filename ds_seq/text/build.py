"""Train and load the tokenizer that `data.vocab.name` selects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_seq.config.data import DataConfig
from ds_seq.errors import UserError
from ds_seq.names import SENTENCEPIECE
from ds_seq.plugins import find_plugin
from ds_seq.text.normalize import Normalizer
from ds_seq.text.round_trip import rewriting
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.sentencepiece_training import PAD_ID
from ds_seq.text.tokenizer import Tokenizer, TokenizerKind, Tokenizers
from ds_seq.text.vocab_file import read_vocab_file

TOKENIZERS: dict[str, TokenizerKind[Tokenizer]] = {SENTENCEPIECE: SentencePieceTokenizer}


def build_normalizer(data: DataConfig) -> Normalizer:
    """Return the normalizer of a config, used in training and in inference."""
    clean = data.clean
    return Normalizer(clean.nfkc, clean.fold_spaces, clean.unicode_form, clean.punctuation)


def train_tokenizer(data: DataConfig, files: Sequence[Path]) -> Tokenizer:
    """Train the tokenizer of a config on clean text, built-in or external.

    Raises:
        UserError: the name is unknown, or the text is too small.
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
    """Load the tokenizers of a config from a `vocab.model`, which is shared by both sides.

    Raises:
        UserError: the file does not exist, or belongs to another kind of tokenizer.
    """
    return read_tokenizers(data, read_vocab_file(path), str(path))


def read_tokenizers(data: DataConfig, content: bytes, name: str) -> Tokenizers:
    """Restore the tokenizers of a config from their bytes.

    Args:
        data: config that sets their kind and the normalization of text.
        content: bytes returned by `Tokenizer.to_bytes`.
        name: name of the content in error messages.

    Raises:
        UserError: the content belongs to another kind of tokenizer.
    """
    normalizer = build_normalizer(data)
    tokenizer = _kind(data).from_bytes(content, normalizer=normalizer, name=name)
    return Tokenizers.shared(_checked(tokenizer, name))


def vocab_notes(data: DataConfig, tokenizer: Tokenizer, path: str | Path) -> list[str]:
    """Return a note if a vocabulary rewrites text, or does not although the config says so.

    Args:
        data: config that describes the vocabulary.
        tokenizer: the vocabulary.
        path: its file.
    """
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return []
    wanted, rule = data.vocab.normalization, rewriting(tokenizer)
    name = "user_defined" if wanted.endswith(".tsv") else wanted  # SentencePiece's name for it
    if tokenizer.normalization == name:
        return [] if rule is None else [f"{path}: rewrites text by {rule}; so are translations"]
    does = "leaves text as it is" if rule is None else f"rewrites text by {rule}"
    return [
        f"{path}: {does}, but data.vocab.normalization is {wanted}; keep it for models that were "
        "trained with it, or let `ds-seq prepare --force` train another one (remove the file first "
        "if it was copied there)"
    ]


def _kind(data: DataConfig) -> TokenizerKind[Tokenizer]:
    return find_plugin("data.vocab", data.vocab.name, TOKENIZERS)


def _checked(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """Check that the padding id is the one that is fixed in all models."""
    if (pad := tokenizer.symbols.pad) != PAD_ID:
        raise UserError(f"{name}: pads with id {pad}, but models support only padding id {PAD_ID}")
    return tokenizer


def _options(data: DataConfig) -> dict[str, Any]:
    """Return the training options of a config's tokenizer besides size and user symbols."""
    if data.vocab.name != SENTENCEPIECE:
        return data.vocab.options
    return {
        "model_type": data.vocab.model_type,
        "character_coverage": data.vocab.character_coverage,
        "input_sentence_size": data.vocab.input_sentence_size,
        "normalization": data.vocab.normalization,
    }
