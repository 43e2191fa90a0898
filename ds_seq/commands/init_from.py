"""The experiment of a fine-tuning, for `ds-seq init --from-model`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.generation import GenerationConfig
from ds_seq.config.load import load_experiment, read_experiment
from ds_seq.config.model import TransformerConfig
from ds_seq.config.vocab import VocabConfig
from ds_seq.errors import UserError
from ds_seq.names import CONFIG_FILE, HUGGINGFACE, LOSS

_HUGGING_FACE = "config.json"
_LEARNING_RATE = "3e-5"
_PASSES = 3
_BATCH = 4096  # of models whose runs found it out


class Base(NamedTuple):
    """The model that is fine-tuned.

    Attributes:
        folder: its run or export.
        config: its experiment.
        model: the section `model` of it.
        is_run: whether it is one of ds_seq, not a folder of transformers.
    """

    folder: Path
    config: ExperimentConfig
    model: TransformerConfig
    is_run: bool = True


class Text(NamedTuple):
    """What settings of a fine-tuning depend on.

    Attributes:
        pairs: number of sentence pairs.
        tokens: estimated number of tokens of the longer side.
        freeze: parts of the model that are not trained.
    """

    pairs: int
    tokens: int
    freeze: list[str]


def read_base(folder: Path, languages: tuple[str, str]) -> Base:
    """Read the experiment of a trained or imported model, or what a folder of transformers says.

    Args:
        folder: the folder.
        languages: languages of source and target.

    Raises:
        UserError: it is no folder of a model.
    """
    file = folder / CONFIG_FILE
    if not folder.is_dir():
        what = "is a file; give a run folder, or a folder that `ds-seq export` wrote"
        raise UserError(f"--from-model {folder}: {what if folder.exists() else 'no such folder'}")
    is_run = file.is_file() or not (folder / _HUGGING_FACE).is_file()
    if is_run and not file.is_file():
        raise UserError(f"--from-model {folder}: has no {CONFIG_FILE}; give a run folder")
    config = load_experiment(file) if is_run else _of_transformers(folder, languages)
    if not isinstance(config.model, TransformerConfig):
        raise UserError(f"--from-model {folder}: is no Transformer; copy its {CONFIG_FILE} instead")
    return Base(folder, config, config.model, is_run)


def _of_transformers(folder: Path, languages: tuple[str, str]) -> ExperimentConfig:
    data = {"source_lang": languages[0], "target_lang": languages[1], "dir": "data"}
    return read_experiment(
        {
            "name": "base",
            "data": data,
            "model": {"name": HUGGINGFACE, "path": str(folder)},
            "validation": {"metrics": [], "best": LOSS},
        }
    )


def fine_tuning(
    base: Base, name: str, languages: tuple[str, str], raw: Sequence[str], text: Text
) -> list[str]:
    """Return the lines of the experiment.

    Args:
        base: the model.
        name: name of the run.
        languages: languages of source and target.
        raw: lines of `data.raw`.
        text: what settings depend on.
    """
    config = base.config
    batch = config.train.max_tokens
    batch = batch if isinstance(batch, int) else _BATCH
    updates = max(100, _PASSES * text.tokens // batch)
    updates -= updates % 50
    return [
        f"# {languages[0]} -> {languages[1]}, {text.pairs:,} sentence pairs; starts with the "
        f"weights of {base.folder}.",
        *_advice(base, name),
        f"name: {json.dumps(name)}",
        "",
        "data:",
        f"  source_lang: {json.dumps(languages[0])}",
        f"  target_lang: {json.dumps(languages[1])}",
        f"  dir: {json.dumps(f'data/{name}')}",
        *raw,
        f"  max_source_length: {config.data.max_source_length}",
        f"  max_target_length: {config.data.max_target_length}",
        *_model_lines(base, languages),
        "",
        f"optimizer: {{name: adamw, lr: {_LEARNING_RATE}, weight_decay: 0.01}}",
        f"scheduler: {{name: linear, warmup_updates: {min(500, updates // 10)}}}",
        "",
        "train:",
        *([f"  init_from: {json.dumps(str(base.folder))}"] if base.is_run else []),
        *([f"  freeze: {json.dumps(text.freeze)}"] if text.freeze else []),
        f"  max_tokens: {batch}",
        "  clip_norm: 1.0",
        f"  max_updates: {updates}  # about {_PASSES} passes over the text, one process",
    ]


def _model_lines(base: Base, languages: tuple[str, str]) -> list[str]:
    """Return the lines of vocabulary, model and criterion.

    A folder of transformers says itself what they are.
    """
    criterion = "criterion: {name: cross_entropy, label_smoothing: 0.1}"
    if not base.is_run:
        path = json.dumps(str(base.folder), ensure_ascii=False)
        lines = ["", f"model: {{name: {HUGGINGFACE}, path: {path}}}"]
        return lines if base.model.moe is not None else [*lines, "", criterion]
    return [
        "  vocab:",
        *_changed(_vocabulary(base, languages), VocabConfig(), "    "),
        "",
        "model:",
        *_changed(base.model, TransformerConfig(), "  "),
        "",
        criterion,
    ]


def generation_lines(base: Base) -> list[str]:
    """Return the lines of the section `generation`; a folder of transformers has its own."""
    if not base.is_run:
        return []
    lines = _changed(base.config.generation, GenerationConfig(), "  ")
    return ["", "generation:", *lines] if lines else []


def _advice(base: Base, name: str) -> Iterator[str]:
    """Yield what is to be done first: only a vocabulary that was made elsewhere has its files."""
    if base.config.data.vocab.source_side.made_elsewhere is None:
        yield f"# First: mkdir -p data/{name} && cp {base.folder}/vocab*.model data/{name}/"


def _vocabulary(base: Base, languages: tuple[str, str]) -> VocabConfig:
    """Return the vocabulary; symbols of other languages are left to the codes of the languages."""
    data = base.config.data
    section = data.vocab.huggingface
    if section is None or languages == (data.source_lang, data.target_lang):
        return data.vocab
    own = section.model_copy(update={"source_code": None, "target_code": None})
    return data.vocab.model_copy(update={"huggingface": own})


def _changed(section: BaseModel, default: BaseModel, indent: str) -> list[str]:
    """Return the fields of a section that are not its defaults, one per line."""
    values, usual = (each.model_dump(mode="json") for each in (section, default))
    return [
        f"{indent}{key}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
        if value != usual[key]
    ]
