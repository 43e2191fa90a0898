"""Expand `model: {name: huggingface, path: FOLDER}` into the sections that the folder describes.

What follows from the weights is filled in and cannot be changed. Settings of training and parts
that are added to a model can be given besides it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_seq.config.base import Config, shown
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.huggingface.experiment import generation, longest, vocabulary
from ds_seq.config.huggingface.experts import sections
from ds_seq.config.huggingface.facts import read_facts
from ds_seq.config.huggingface.folder import StoredTensors, read_settings
from ds_seq.config.model import TransformerConfig
from ds_seq.config.model.moe import MoeConfig
from ds_seq.errors import UserError

Section = dict[str, Any]
Error = tuple[tuple[str, ...], str]

_FREE = frozenset(
    "dropout attention_dropout activation_dropout layer_drop drop_path activation_checkpointing "
    "adapters lora linear max_positions".split()
)
"""Options of `model` that fit weights of other values."""
_FIXED_OF_EXPERTS = frozenset(
    "num_experts top_k layers placement every ffn_dim router normalize_weights residual "
    "shared_experts conditional_budget".split()
)
"""Options of `model.moe` that the weights of experts were trained with."""


def expanded(data: Mapping[str, Any]) -> tuple[Section, list[Error]]:
    """Return an experiment with what the folder of its model says.

    The first weights of a run are those of the folder, unless `train.init_from` is given.

    Args:
        data: settings of a whole experiment, whose model names a folder; not modified.

    Returns:
        The settings, without `model` if the folder cannot be read; and errors: path of a key,
        message.
    """
    others = {key: value for key, value in data.items() if key != "model"}
    path = data["model"].get("path")
    if not isinstance(path, str) or not path:
        what = "missing" if path is None else f"is {shown(path)}"
        return others, [(("model", "path"), f"{what}; name the folder of the model")]
    folder = Path(path)
    try:
        settings = read_settings(folder, "config.json")
        described = sections(settings, read_facts(settings, StoredTensors(folder)), path)
        answers = generation(folder, settings, longest(described.model))
    except UserError as error:
        return others, [(("model", "path"), str(error))]
    model, errors = _model(data["model"], described.model, path)
    changed = {**others, "model": model}
    changed["data"], more = _data(data.get("data", {}), folder, settings, model)
    changed["generation"] = _filled(data.get("generation", {}), answers)
    changed["train"] = _train(data.get("train", {}), path, model)
    if described.criterion:
        changed.setdefault("criterion", described.criterion)
    return changed, errors + more


def _train(given: Any, path: str, model: Section) -> Any:
    """Return the section `train` with the first weights; the folder has no added parts."""
    added = [key for key in ("adapters", "lora") if model.get(key) is not None]
    return _filled(given, {"init_from": path, **({"allow_missing": added} if added else {})})


def _filled(section: Any, values: Section) -> Any:
    """Return a section with values for the keys that it does not have."""
    return {**values, **section} if isinstance(section, Mapping) else section


def _model(given: Mapping[str, Any], described: Section, path: str) -> tuple[Section, list[Error]]:
    """Return the section of the Transformer, and what contradicts the folder."""
    section, errors = dict(described), []
    for key, value in given.items():
        if key in ("name", "path"):
            continue
        free = key not in TransformerConfig.model_fields or key in _FREE
        if key == "max_positions" and described.get("positions") == "learned":
            free = False
        if key == "moe" and isinstance(value, Mapping) and isinstance(described.get(key), dict):
            section[key], more = _experts(value, described[key], path)
            errors += more
        elif free or (key == "moe" and key not in described):
            section[key] = value
        elif (
            problem := _contradiction(key, value, described, TransformerConfig, path)
        ) is not None:
            errors.append((("model", key), problem))
    return {"name": "transformer", **section}, errors


def _experts(
    given: Mapping[str, Any], described: Section, path: str
) -> tuple[Section, list[Error]]:
    section, errors = dict(described), list[Error]()
    for key, value in given.items():
        if key not in _FIXED_OF_EXPERTS:
            section[key] = value
        elif (problem := _contradiction(key, value, described, MoeConfig, path)) is not None:
            errors.append((("model", "moe", key), problem))
    return section, errors


def _contradiction(
    key: str,
    value: Any,
    described: Mapping[str, Any],
    section: type[TransformerConfig] | type[MoeConfig],
    path: str,
) -> str | None:
    """Return what is wrong with a value that the folder determines; None: nothing."""
    usual = section.model_fields[key].get_default(call_default_factory=True)
    usual = vars(usual)["name"] if isinstance(usual, Config) else usual
    actual = described.get(key, usual)
    if _plain(value) == _plain(actual):
        return None
    return f"{shown(value)}, but {path} has {shown(_plain(actual))}; remove the key"


def _plain(value: Any) -> Any:
    """Return a section that consists of its name as that."""
    return value["name"] if isinstance(value, Mapping) and list(value) == ["name"] else value


def _data(
    given: Any, folder: Path, settings: Mapping[str, Any], model: Section
) -> tuple[Any, list[Error]]:
    """Return the section `data`, with the vocabulary of the folder."""
    if not isinstance(given, Mapping):
        return given, []
    fields = ExperimentConfig.model_fields["data"].annotation
    assert fields is not None
    section = dict(given)
    positions = model.get("max_positions")
    for key in ("max_source_length", "max_target_length"):
        if isinstance(positions, int) and positions < fields.model_fields[key].default:
            section.setdefault(key, positions)
    own, vocab = given.get("vocab", {}), vocabulary(folder, settings, {})
    if not isinstance(own, Mapping):
        return section, []
    fixed = [key for key in ("name", "size", "joint") if key in vocab and key in own]
    wrong = [key for key in fixed if own[key] != vocab[key]]
    section["vocab"] = _merged(vocab, {key: own[key] for key in own if key not in wrong})
    return section, [
        (
            ("data", "vocab", key),
            f"{shown(own[key])}, but {folder} has {shown(vocab[key])}; remove the key",
        )
        for key in wrong
    ]


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Section:
    """Return two sections as one; the values of the second count."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = _merged(old, value)
        both[key] = value
    return both
