"""The source of examples that an experiment names."""

from __future__ import annotations

from ds_seq.config.base import ExternalConfig
from ds_seq.config.data import DataConfig, FairseqConfig
from ds_seq.data.open import SourceChoice
from ds_seq.text.tokenizer import Tokenizers


def source_choice(data: DataConfig, tokenizers: Tokenizers) -> SourceChoice:
    """Return the source that `data.source` names, with its options.

    Args:
        data: the section.
        tokenizers: tokenizers of the run, into whose ids other formats are translated.
    """
    config = data.source
    if isinstance(config, FairseqConfig):
        options = {"folders": config.folders, "languages": data.fairseq_languages}
        return SourceChoice(config.name, {**options, "tokenizers": tokenizers})
    if isinstance(config, ExternalConfig):
        return SourceChoice(config.name, config.options)
    return SourceChoice(config.name, config.model_dump(exclude={"name"}))
