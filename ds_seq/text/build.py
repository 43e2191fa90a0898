"""Train and load the tokenizers that `data.vocab` describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_seq.config.data import DataConfig
from ds_seq.config.vocab import VocabFields
from ds_seq.errors import UserError
from ds_seq.names import FAIRSEQ_DICT, HUGGINGFACE, SENTENCEPIECE
from ds_seq.plugins import find_plugin
from ds_seq.text.fairseq_tokenizer import FairseqDictTokenizer
from ds_seq.text.normalize import Normalizer
from ds_seq.text.round_trip import rewriting
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.sentencepiece_training import PAD_ID
from ds_seq.text.tokenizer import SidedTokenizer, Tokenizer, TokenizerKind, Tokenizers
from ds_seq.text.vocab_file import read_vocab_file, vocab_paths


class _HuggingFace:
    """`HuggingFaceTokenizer`, imported when it is used."""

    @staticmethod
    def train(files: Sequence[Path], **options: Any) -> Tokenizer:
        """See `TokenizerKind.train`."""
        from ds_seq.text.huggingface import HuggingFaceTokenizer

        return HuggingFaceTokenizer.train(files, **options)

    @staticmethod
    def from_bytes(content: bytes, *, normalizer: Normalizer, name: str) -> Tokenizer:
        """See `TokenizerKind.from_bytes`."""
        from ds_seq.text.huggingface import HuggingFaceTokenizer

        return HuggingFaceTokenizer.from_bytes(content, normalizer=normalizer, name=name)


TOKENIZERS: dict[str, TokenizerKind[Tokenizer]] = {
    SENTENCEPIECE: SentencePieceTokenizer,
    FAIRSEQ_DICT: FairseqDictTokenizer,
    HUGGINGFACE: _HuggingFace,
}


def build_normalizer(data: DataConfig) -> Normalizer:
    """Return the normalizer of a config, used in training and in inference."""
    clean = data.clean
    return Normalizer(clean.nfkc, clean.fold_spaces, clean.unicode_form, clean.punctuation)


def train_tokenizer(data: DataConfig, vocab: VocabFields, files: Sequence[Path]) -> Tokenizer:
    """Train a tokenizer of a config on clean text, built-in or external.

    Args:
        data: config that sets the normalization of text.
        vocab: one of `data.vocab.parts`.
        files: clean text of the sides that it is for.

    Raises:
        UserError: the name is unknown, or the text is too small.
    """
    tokenizer = _kind(vocab).train(
        files,
        size=vocab.size,
        user_symbols=vocab.user_symbols,
        normalizer=build_normalizer(data),
        **training_options(vocab),
    )
    return _checked(tokenizer, vocab.name)


def train_tokenizers(data: DataConfig, files: Sequence[Path]) -> Tokenizers:
    """Train or read the tokenizers of both sides of a config; see `train_tokenizer`."""
    sides = [train_tokenizer(data, vocab, files) for vocab in data.vocab.parts.values()]
    return in_languages(Tokenizers(sides[0], sides[-1]), data)


def load_tokenizers(data: DataConfig, folder: str | Path) -> Tokenizers:
    """Load the tokenizers of a config from the files that `vocab_paths` names.

    Raises:
        UserError: a file does not exist, or belongs to another kind of tokenizer.
    """
    paths = vocab_paths(folder, data.vocab.joint)
    return read_tokenizers(data, [read_vocab_file(path) for path in paths], list(map(str, paths)))


def read_tokenizers(
    data: DataConfig, contents: Sequence[bytes], names: Sequence[str]
) -> Tokenizers:
    """Restore the tokenizers of a config from their bytes.

    Args:
        data: config that sets their kind and the normalization of text.
        contents: bytes returned by `Tokenizer.to_bytes`: of the joint tokenizer, or of source and
            target.
        names: what error messages call each of them.

    Raises:
        UserError: the content belongs to another kind of tokenizer.
    """
    tokenizers = [
        read_tokenizer(data, vocab, content, name)
        for vocab, content, name in zip(data.vocab.parts.values(), contents, names, strict=True)
    ]
    return in_languages(Tokenizers(tokenizers[0], tokenizers[-1]), data)


def in_languages(tokenizers: Tokenizers, data: DataConfig) -> Tokenizers:
    """Return the tokenizers for the languages of a config, if text of a side depends on its own."""
    languages = (data.source_lang, data.target_lang)
    return Tokenizers(*map(_in_language, tokenizers, languages, (True, False)))


def _in_language(tokenizer: Tokenizer, language: str, is_source: bool) -> Tokenizer:
    if isinstance(tokenizer, SidedTokenizer):
        return tokenizer.for_side(language, is_source)
    return tokenizer


def read_tokenizer(data: DataConfig, vocab: VocabFields, content: bytes, name: str) -> Tokenizer:
    """Restore the tokenizer of one of `data.vocab.parts`; see `read_tokenizers`."""
    normalizer = build_normalizer(data)
    return _checked(_kind(vocab).from_bytes(content, normalizer=normalizer, name=name), name)


def vocab_notes(vocab: VocabFields, tokenizer: Tokenizer, path: str | Path) -> list[str]:
    """Return a note if a vocabulary rewrites text, or does not although the config says so.

    Args:
        vocab: section that describes the vocabulary.
        tokenizer: the vocabulary.
        path: its file.
    """
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return []
    wanted, rule = vocab.normalization, rewriting(tokenizer)
    name = "user_defined" if wanted.endswith(".tsv") else wanted  # SentencePiece's name for it
    if tokenizer.normalization == name:
        return [] if rule is None else [f"{path}: rewrites text by {rule}; so are translations"]
    does = "leaves text as it is" if rule is None else f"rewrites text by {rule}"
    return [
        f"{path}: {does}, but data.vocab.normalization is {wanted}; keep it for models that were "
        "trained with it, or let `ds-seq prepare --force` train another one (remove the file first "
        "if it was copied there)"
    ]


def _kind(vocab: VocabFields) -> TokenizerKind[Tokenizer]:
    return find_plugin("data.vocab", vocab.name, TOKENIZERS)


def _checked(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """Check that the padding id is the one that is fixed in all models."""
    if (pad := tokenizer.symbols.pad) != PAD_ID:
        raise UserError(f"{name}: pads with id {pad}, but models support only padding id {PAD_ID}")
    return tokenizer


def training_options(vocab: VocabFields) -> dict[str, Any]:
    """Return the training options of a tokenizer besides size and user symbols."""
    if vocab.made_elsewhere is not None:
        return vocab.made_elsewhere[1].model_dump()
    if vocab.name != SENTENCEPIECE:
        return vocab.options
    return {
        "model_type": vocab.model_type,
        "character_coverage": vocab.character_coverage,
        "byte_fallback": vocab.byte_fallback,
        "input_sentence_size": vocab.input_sentence_size,
        "normalization": vocab.normalization,
        "control_symbols": vocab.control_symbols,
    }
