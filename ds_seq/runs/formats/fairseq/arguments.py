"""The arguments that a checkpoint of fairseq was trained with, as plain values."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

from ds_seq.compat.fairseq.adaptive import ADAPTIVE
from ds_seq.compat.fairseq.architectures import ROBERTAS
from ds_seq.compat.fairseq.command import BY_DEST, Given
from ds_seq.compat.fairseq.convolutions import FCONV, LIGHTCONV
from ds_seq.compat.fairseq.flag import changes, numbers
from ds_seq.compat.fairseq.language_models import language_model_section
from ds_seq.compat.fairseq.masked_models import is_masked_model, masked_model_section
from ds_seq.compat.fairseq.model import model_section
from ds_seq.compat.fairseq.model_flags import MODEL_FLAGS
from ds_seq.compat.fairseq.recurrent import LSTM_LM
from ds_seq.compat.fairseq.refusals import Refusals
from ds_seq.compat.fairseq.text_model import LANGUAGE_MODELS
from ds_seq.errors import UserError
from ds_seq.runs.formats.fairseq.plain import Inert
from ds_seq.runs.formats.fairseq.recurrent import RECURRENT

_PREFIXES = ("transformer", "bart", "mbart", LIGHTCONV, FCONV)
_NESTED = ("encoder", "decoder", "quant_noise")
_SECTIONS = ("common", "task", "criterion", "model", "generation")
_MOST_LEVELS = 20

# what is refused in a training, and does not matter to a model that is trained
_OF_TRAINING = frozenset(
    "encoder_embed_path decoder_embed_path encoder_layers_to_keep decoder_layers_to_keep "
    "quant_noise_pq quant_noise_scalar deepspeed_config pipeline_model_parallel "
    "encoder_xformers_att_config decoder_xformers_att_config".split()
)


_MERGED = "lora_args"  # low-rank changes are added to the weights before they are stored


def find_arguments(checkpoint: Any, path: Path) -> dict[str, Any]:
    """Return the arguments by their names with underscores.

    Args:
        checkpoint: content of the file.
        path: the file, for messages.

    Raises:
        UserError: there are none.
    """
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("model"), Mapping):
        raise UserError(
            f"{path}: has no weights under the key model; give a checkpoint that fairseq wrote"
        )
    if checkpoint.get("cfg") is not None:
        config = _plain(checkpoint["cfg"])
        found: dict[str, Any] = {}
        for section in _SECTIONS:
            part = config.get(section) if isinstance(config, Mapping) else None
            if isinstance(part, Mapping):
                found |= _flat(part)
                key = {"model": "arch", "task": "task"}.get(section)
                if key is not None and "_name" in part:
                    found.setdefault(key, part["_name"])
    else:
        found = _flat(_plain(checkpoint.get("args")) or {})
    if not found:
        raise UserError(
            f"{path}: says neither in args nor in cfg what the model is; give a checkpoint that "
            "fairseq wrote"
        )
    return found


def _flat(section: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the values of `encoder: {embed_dim: ...}` to `encoder_embed_dim`."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if key in _NESTED and isinstance(value, Mapping):
            flat |= {f"{key}_{name}": item for name, item in value.items()}
        else:
            flat[key] = value
    return flat


def _plain(value: Any, level: int = 0) -> Any:
    """Return settings of argparse or omegaconf as dictionaries, lists and values."""
    if level > _MOST_LEVELS:
        return None
    if isinstance(value, Inert):
        state = vars(value)
        if "_content" in state:  # a container of omegaconf
            return _plain(state["_content"], level + 1)
        if "_val" in state:  # one of its values
            return _plain(state["_val"], level + 1)
        arguments: tuple[Any, ...] = state.get("_arguments", ())
        if len(arguments) == 1 and len(state) == 1:  # a value of an enumeration
            return _plain(arguments[0], level + 1)
        kept = {k: v for k, v in state.items() if not k.startswith("_") or k == "_name"}
        return _plain(kept, level + 1)
    if isinstance(value, argparse.Namespace):
        return _plain(vars(value), level + 1)
    if isinstance(value, Mapping):
        return {str(_plain(k, level + 1)): _plain(v, level + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, level + 1) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value if isinstance(value, str | int | float | bool | type(None)) else None


def given_model(arguments: Mapping[str, Any]) -> Given:
    """Return the arguments that describe the model; unknown ones are left out."""
    values = {}
    old = arguments.get("max_positions")  # of both sides
    most = {} if old is None else {"max_source_positions": old, "max_target_positions": old}
    for dest, value in {**most, **arguments}.items():
        flag = BY_DEST.get(dest)
        if flag is None or value is None:
            continue
        if flag.kind == "json" and isinstance(value, str):
            value = _object(value)
        elif flag.kind == "list":
            value = _numbers(value)
        if value is None:
            continue
        is_list = dest.endswith("_layers") and str(arguments.get("arch")).startswith(FCONV)
        if flag in MODEL_FLAGS and flag.kind in ("int", "float") and not is_list:
            _check_number(flag.names[0], value)
        values[dest] = value
    arch = str(values.get("arch", "transformer"))
    if arch in ROBERTAS:  # whose older files leave out what was no choice then
        return Given.of(values)
    if not arch.startswith(_PREFIXES) and arch not in (*RECURRENT, LSTM_LM):
        raise UserError(
            f"import: --arch {arch}: only Transformers, BART, RoBERTa, lightconv and fconv of "
            f"fairseq can be imported, and {', '.join((*RECURRENT, LSTM_LM))}"
        )
    # a checkpoint has the values themselves, so the name of the architecture adds nothing
    return Given(values)


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, int | float):
        raise UserError(
            f"{name} {value!r}: the checkpoint should have a number there; it is damaged, or of "
            "another program"
        )


def is_language_model(given: Given) -> bool:
    """Return whether the arguments are those of a language model."""
    return str(given["arch"] or "").startswith(LANGUAGE_MODELS)


def described_model(given: Given, arguments: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the section `model`.

    Args:
        given: the arguments that describe the model.
        arguments: all arguments.
        path: the checkpoint, for messages.

    Raises:
        UserError: no model of ds_seq is like it; everything that differs is named.
    """
    refusals = Refusals()
    for dest, value in given.values.items():
        flag = BY_DEST[dest]
        if dest in ADAPTIVE and not is_language_model(given) and changes(flag, value):
            refusals.add(f"{flag.names[0]} {value}: {flag.note}")
        is_refused = flag.fate == "refused" and flag in MODEL_FLAGS and dest not in _OF_TRAINING
        if is_refused and changes(flag, value):
            refusals.add(f"{flag.names[0]} {value}: {flag.note}")
    if given["rope_args"] is not None:
        refusals.add("--rope-args: rotates half of each head there, and all of it here")
    for stack in ("encoder", "decoder"):
        heads = given[f"{stack}_kv_attention_heads"]
        if heads is not None and heads != given[f"{stack}_attention_heads"]:
            refusals.add(
                f"{given.name(f'{stack}_kv_attention_heads')} {heads}: holds for self-attention "
                "only there, and for all attention here"
            )
    if given["alibi_args"] is not None and given["alibi_args"].get("type") == "asymmetrical":
        refusals.add("--alibi-args asymmetrical: distances in an encoder count alike here")
    given = replace(given, values={k: v for k, v in given.values.items() if k != _MERGED})
    if is_language_model(given):
        section = language_model_section(given, arguments, refusals)
    elif is_masked_model(given):
        section = masked_model_section(given, arguments, refusals)
    else:
        section = model_section(given, refusals)
    refusals.raise_any(str(path))
    return section


def _object(text: str) -> Any:
    import json

    try:
        value = json.loads(text) if text.strip() else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _numbers(value: Any) -> Any:
    try:
        return numbers(value)
    except (ValueError, SyntaxError, TypeError):
        return None
