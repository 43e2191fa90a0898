"""Build `task: denoising` from an experiment."""

from __future__ import annotations

from ds_seq.config.data import DataConfig
from ds_seq.config.noise import T5Config
from ds_seq.config.task import DenoisingConfig
from ds_seq.data.denoising import Noise, SideTexts, Texts, TextToRestore
from ds_seq.data.expected import expected_by_experiment
from ds_seq.data.noise.spans import SpanNoise
from ds_seq.data.noise.text import TextNoise
from ds_seq.data.noise.vocab import noise_vocab, sentinel_ids
from ds_seq.data.open import open_source
from ds_seq.data.source import SOURCE, TARGET
from ds_seq.names import SideChoice
from ds_seq.tasks.denoising import DenoisingTask
from ds_seq.tasks.sources import source_choice
from ds_seq.text.build import load_tokenizers
from ds_seq.text.tokenizer import Tokenizer, Tokenizers

_COLUMNS: dict[SideChoice, tuple[int, ...]] = {
    "source": (SOURCE,),
    "target": (TARGET,),
    "both": (SOURCE, TARGET),
}


def denoising(config: DenoisingConfig, data: DataConfig) -> DenoisingTask:
    """Return the task of an experiment.

    Raises:
        UserError: the vocabulary is missing, or lacks a symbol that the noise needs.
    """
    tokenizers = load_tokenizers(data, data.dir)
    return DenoisingTask(
        tokenizers,
        lambda split: texts(data, tokenizers, config.side, split),
        _noise(config, tokenizers.source),
        (data.max_source_length, data.max_target_length),
    )


def texts(data: DataConfig, tokenizers: Tokenizers, side: SideChoice | None, split: str) -> Texts:
    """Return the text of a split.

    Args:
        data: the section.
        tokenizers: tokenizers of the ids.
        side: side of pairs; None for text of one side.
        split: `train`, `valid` or `test`.
    """
    assert side is not None
    source = open_source(
        source_choice(data, tokenizers),
        data.dir,
        split,
        tokenizers.fingerprint,
        expected_by_experiment(data, split),
    )
    symbols = [tokenizer.symbols for tokenizer in tokenizers]
    return SideTexts(source, [(column, symbols[column]) for column in _COLUMNS[side]])


def _noise(config: DenoisingConfig, tokenizer: Tokenizer) -> Noise:
    noise = config.noise
    if isinstance(noise, T5Config):
        return SpanNoise(noise.density, noise.span_mean, sentinel_ids(tokenizer)[: noise.sentinels])
    vocab = noise_vocab(tokenizer, noise.whole_words, noise.sentence_ends)
    return TextToRestore(TextNoise(*(vars(noise)[field] for field in TextNoise._fields)), vocab)
