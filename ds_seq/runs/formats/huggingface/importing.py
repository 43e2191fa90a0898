"""Make a run of a Hugging Face folder, and compare it with what transformers computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.huggingface.experiment import generation, longest, vocabulary
from ds_seq.config.huggingface.folder import read_settings
from ds_seq.config.load import read_experiment
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.runs.formats.huggingface.describe import Described, describe
from ds_seq.runs.formats.huggingface.folder import FolderTensors
from ds_seq.runs.formats.huggingface.mapping import account
from ds_seq.runs.formats.huggingface.source import HuggingFaceSource, orders_of
from ds_seq.runs.formats.imported import Entry, Imported
from ds_seq.text.build import train_tokenizers
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.weights.fill import model_tensors


@dataclass(frozen=True)
class Languages:
    """Languages of source and target.

    Attributes:
        source: language code; None: that of the folder.
        target: language code; None: that of the folder.
        source_code: the model's symbol of the source language; None: found by the language code.
        target_code: that of the target.
        source_prefix: text in front of every source.
    """

    source: str | None = None
    target: str | None = None
    source_code: str | None = None
    target_code: str | None = None
    source_prefix: str | None = None


class Read(NamedTuple):
    """What a folder holds, before its weights are read.

    Attributes:
        config: experiment that describes the model.
        tokenizers: its tokenizers.
        entries: what becomes of each tensor of theirs.
        source: its weights as ours.
    """

    config: ExperimentConfig
    tokenizers: Tokenizers
    entries: list[Entry]
    source: HuggingFaceSource


def read_folder(folder: Path, name: str, languages: Languages) -> Read:
    """Read all of a folder that `save_pretrained` wrote, but the weights of the model.

    Args:
        folder: the folder.
        name: name of the new run.
        languages: languages of source and target.

    Raises:
        UserError: a file is missing or damaged, or the model has no counterpart; all tensors that
            are missing or left over are named.
    """
    settings = read_settings(folder, "config.json")
    theirs = FolderTensors(folder)
    described = describe(settings, theirs.facts(settings), theirs, str(folder))
    config = _experiment(folder, settings, described, name, languages)
    tokenizers = train_tokenizers(config.data, [])
    entries = account(described.names, theirs, described.copies)
    _check_complete(folder, described, entries, theirs)
    source = HuggingFaceSource(folder, theirs, described.names, orders_of(tokenizers))
    return Read(config, tokenizers, entries, source)


def import_folder(folder: Path, name: str, languages: Languages) -> Imported:
    """Read a folder that `save_pretrained` wrote for a model and its tokenizer.

    Args:
        folder: the folder.
        name: name of the new run.
        languages: languages of source and target.

    Raises:
        UserError: see `read_folder`; or a tensor has another shape.
    """
    config, tokenizers, entries, source = read_folder(folder, name, languages)
    model = build_model(config.model, tokenizers.sizes, 1, 0, config.train.seed)
    with torch.no_grad():
        for ours, tensor in model_tensors(model):
            value = source.read(ours)
            if value.shape != tensor.shape:
                raise UserError(
                    f"{folder}: the tensors for {ours} have the shape {tuple(value.shape)}, but "
                    f"config.json says {tuple(tensor.shape)}"
                )
            tensor.copy_(value)
    return Imported(model.eval(), config, tokenizers, entries)


def _check_complete(
    folder: Path, described: Described, entries: Sequence[Entry], theirs: Mapping[str, Any]
) -> None:
    """Refuse tensors that are missing, or that no model of ds_seq has; names all of them."""
    needed = [part.name for parts in described.names.values() for part in parts]
    missing = [name for name in needed if name not in theirs]
    left = [each.theirs for each in entries if each.how == "left" and not each.note]
    if missing or left:
        both = (("lacks", missing), ("has no place for", left))
        parts = [f"{what} {', '.join(found)}" for what, found in both if found]
        raise UserError(f"{folder}: {'; '.join(parts)}")


def _experiment(
    folder: Path,
    settings: Mapping[str, Any],
    described: Described,
    name: str,
    languages: Languages,
) -> ExperimentConfig:
    tokenizer = read_settings(folder, "tokenizer_config.json", is_needed=False)
    found = {}
    known = dict(zip(("source", "target"), tokenizer.get("langs") or (), strict=False))  # of FSMT
    for side in ("source", "target"):
        code = vars(languages)[side] or tokenizer.get(f"{side}_lang") or known.get(side)
        if not isinstance(code, str):
            raise UserError(f"{folder}: names no languages; add --{side}-lang")
        found[f"{side}_lang"] = code
    codes = {key: vars(languages)[key] for key in ("source_code", "target_code")}
    codes |= {"source_prefix": languages.source_prefix or ""}
    length = longest(described.section)
    described.section.setdefault("max_positions", length)
    return read_experiment(
        {
            "name": name,
            "data": {
                **found,
                "dir": f"data/{name}",
                "max_source_length": length,
                "max_target_length": length,
                "vocab": vocabulary(folder, settings, codes),
            },
            "model": described.section,
            **({"criterion": described.criterion} if described.criterion else {}),
            "train": {"max_tokens": max(4096, length)},
            "validation": {"metrics": [], "best": "loss"},
            "generation": generation(folder, settings, length),
        }
    )
