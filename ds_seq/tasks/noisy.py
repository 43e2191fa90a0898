"""Build the tasks that learn from noisy text: `denoising` and `masked_language_modeling`."""

from __future__ import annotations

from ds_seq.config.data import DataConfig
from ds_seq.config.noise import SENTENCE_ENDS, T5Config
from ds_seq.config.task import DenoisingConfig, MaskedLanguageModelingConfig, NoisyTextFields
from ds_seq.data.denoising import (
    BlockTexts,
    DenoisingDataset,
    MaskedDataset,
    Noise,
    SideTexts,
    Texts,
    TextToRestore,
)
from ds_seq.data.expected import expected_by_experiment
from ds_seq.data.noise.masking import Masking
from ds_seq.data.noise.spans import SpanNoise
from ds_seq.data.noise.text import TextNoise
from ds_seq.data.noise.vocab import noise_vocab, sentinel_ids
from ds_seq.data.open import open_source
from ds_seq.data.source import SOURCE, TARGET, Source
from ds_seq.data.text import TextDataset
from ds_seq.names import SideChoice
from ds_seq.tasks import source_choice
from ds_seq.tasks.denoising import NoisyText, NoisyTextTask
from ds_seq.tasks.mix import text_parts
from ds_seq.text.build import load_tokenizers
from ds_seq.text.tokenizer import Tokenizer, Tokenizers

_COLUMNS: dict[SideChoice, tuple[int, ...]] = {
    "source": (SOURCE,),
    "target": (TARGET,),
    "both": (SOURCE, TARGET),
}


def denoising(config: DenoisingConfig, data: DataConfig) -> NoisyTextTask:
    """Return the task `denoising` of an experiment.

    Raises:
        UserError: the vocabulary is missing, or lacks a symbol that the noise needs.
    """
    tokenizers = load_tokenizers(data, data.dir)
    noise = _noise(config, tokenizers.source)
    symbols = tokenizers.source.symbols, tokenizers.target.symbols
    limits = _limit(data, data.max_source_length), _limit(data, data.max_target_length)

    def dataset(split: str) -> NoisyText:
        return DenoisingDataset(_texts(config, data, tokenizers, split), noise, symbols, limits)

    return NoisyTextTask(config.name, tokenizers, dataset)


def masked_language_modeling(
    config: MaskedLanguageModelingConfig, data: DataConfig
) -> NoisyTextTask:
    """Return the task `masked_language_modeling` of an experiment; see `denoising`."""
    tokenizers = load_tokenizers(data, data.dir)
    vocab = noise_vocab(tokenizers.source, config.whole_words, SENTENCE_ENDS)
    masking = Masking(config.predicted, config.random_tokens, config.kept_tokens)
    symbols = tokenizers.source.symbols
    limit = _limit(data, data.max_source_length)

    def dataset(split: str) -> NoisyText:
        texts = _texts(config, data, tokenizers, split)
        return MaskedDataset(texts, masking, vocab, symbols, limit)

    return NoisyTextTask(config.name, tokenizers, dataset)


def _limit(data: DataConfig, limit: int) -> int | None:
    """Return a limit of sentences of pairs; blocks of text are cut to theirs instead."""
    return limit if data.language is None else None


def _texts(config: NoisyTextFields, data: DataConfig, tokenizers: Tokenizers, split: str) -> Texts:
    """Return the text of a split: one side of pairs or both, or blocks of text of one side."""
    expected = expected_by_experiment(data, split)
    source = open_source(
        source_choice(data, tokenizers), data.dir, split, tokenizers.fingerprint, expected
    )
    if config.side is None:
        return _blocks(config, data, tokenizers.target, split, source)
    symbols = [tokenizer.symbols for tokenizer in tokenizers]
    return SideTexts(source, [(column, symbols[column]) for column in _COLUMNS[config.side]])


def _blocks(
    config: NoisyTextFields, data: DataConfig, tokenizer: Tokenizer, split: str, source: Source
) -> BlockTexts:
    around = len(tokenizer.symbols.framed(()))
    blocks = TextDataset(
        source,
        text_parts(data, split, source),
        config.blocks,
        max(config.block_tokens - around, 1),  # those around a block that ends within a line
        config.random_start and config.blocks == "tokens" and split == "train",
        empty_length=around,
    )
    return BlockTexts(blocks, tokenizer.symbols)


def _noise(config: DenoisingConfig, tokenizer: Tokenizer) -> Noise:
    noise = config.noise
    if isinstance(noise, T5Config):
        return SpanNoise(noise.density, noise.span_mean, sentinel_ids(tokenizer)[: noise.sentinels])
    vocab = noise_vocab(tokenizer, noise.whole_words, noise.sentence_ends)
    return TextToRestore(TextNoise(*(vars(noise)[field] for field in TextNoise._fields)), vocab)
