"""Models of Hugging Face folders, which some commands take as they are."""

from __future__ import annotations

from pathlib import Path

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.errors import UserError
from ds_seq.runs.card import LoadedRun, ModelCard, StoredRun
from ds_seq.runs.formats.ds_seq import CONFIG_FILE


def is_huggingface(path: Path) -> bool:
    """Return whether a folder looks like one that `save_pretrained` of transformers wrote."""
    return (path / "config.json").is_file() and not (path / CONFIG_FILE).exists()


def load_huggingface(
    folder: Path, source_lang: str | None, target_lang: str | None, is_compared: bool
) -> LoadedRun:
    """Import the model of a Hugging Face folder, without writing a run.

    Args:
        folder: folder with model and tokenizer.
        source_lang: language code of the source; None: that of the folder.
        target_lang: language code of the target; None: that of the folder.
        is_compared: whether to compare its logits with those of transformers.

    Raises:
        UserError: the model has no counterpart, a file is missing, or the logits differ.
    """
    from ds_seq.runs.formats.huggingface.comparison import compare, sample_lines
    from ds_seq.runs.formats.huggingface.importing import Languages, import_folder

    made = import_folder(folder, folder.resolve().name, Languages(source_lang, target_lang))
    if is_compared:
        compare(folder, made.model, made.tokenizers, sample_lines(made.tokenizers))
    card = ModelCard.of_experiment(made.config, made.tokenizers)
    made.model.requires_grad_(False)
    return LoadedRun(card, made.config.model, made.model, folder, made.config)


def open_huggingface(folder: Path, config: ExperimentConfig) -> StoredRun:
    """Open the weights of a Hugging Face folder with which an experiment begins.

    Args:
        folder: folder with model and tokenizer.
        config: the experiment, which has the languages.

    Raises:
        UserError: the model has no counterpart, or a file is missing or damaged.
    """
    from ds_seq.runs.formats.huggingface.importing import read_folder
    from ds_seq.runs.formats.huggingface.origin import languages_of

    read = read_folder(folder, config.name, languages_of(config))
    card = ModelCard.of_experiment(read.config, read.tokenizers)
    return StoredRun(card, read.config.model, read.source, read.config)


def refuse_huggingface(path: Path) -> None:
    """Say how to use a Hugging Face folder where a run is needed.

    Raises:
        UserError: it is one.
    """
    if is_huggingface(path):
        raise UserError(
            f"{path}: is a folder of Hugging Face; make a run of it first: ds-seq import "
            f"huggingface {path} --out RUN --source-lang CODE --target-lang CODE"
        )
