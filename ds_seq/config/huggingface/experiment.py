"""The sections of an experiment, besides `model`, that follow from a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_seq.config.huggingface.folder import read_settings
from ds_seq.names import HUGGINGFACE

_LONGEST = 512
# ours <- theirs, of generation_config.json or config.json
_GENERATION = {
    "beam": "num_beams",
    "length_penalty": "length_penalty",
    "no_repeat_ngram": "no_repeat_ngram_size",
    "max_len_b": "max_length",
}


def longest(model: Mapping[str, Any]) -> int:
    """Return the longest text that an import is meant for, in subwords."""
    return min(int(model.get("max_positions", _LONGEST)), _LONGEST * 2)


def vocabulary(
    folder: Path, settings: Mapping[str, Any], codes: Mapping[str, str | None]
) -> dict[str, Any]:
    """Return the section `data.vocab`.

    Args:
        folder: the folder.
        settings: content of its `config.json`.
        codes: further options of `data.vocab.huggingface`.
    """
    if settings["model_type"] != "fsmt":
        section = {"path": str(folder), **codes}
        return {"name": HUGGINGFACE, "size": settings["vocab_size"], "huggingface": section}
    sides = {
        side: {"size": settings[key], "huggingface": {"path": str(folder), "side": side}}
        for side, key in (("source", "src_vocab_size"), ("target", "tgt_vocab_size"))
    }
    return {"joint": False, "name": HUGGINGFACE, **sides}


def generation(folder: Path, settings: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return the section `generation`.

    Args:
        folder: the folder.
        settings: content of its `config.json`.
        length: most tokens of a text.
    """
    given = dict(settings) | read_settings(folder, "generation_config.json", is_needed=False)
    found = {
        ours: given[theirs] for ours, theirs in _GENERATION.items() if given.get(theirs) is not None
    }
    found["max_len_a"] = 0.0
    found["max_len_b"] = min(found.get("max_len_b", length), length) - 1
    return found
