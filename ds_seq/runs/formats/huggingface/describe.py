"""Choose the family that reads a Hugging Face config."""

from __future__ import annotations

from ds_seq.errors import UserError
from ds_seq.runs.formats.huggingface.families import FAMILIES, Config, Described, Tensors
from ds_seq.runs.formats.huggingface.moe_families import MOE_FAMILIES

_ALL = {**FAMILIES, **MOE_FAMILIES}


def describe(config: Config, theirs: Tensors, path: str) -> Described:
    """Return the model of ds_seq that a `config.json` describes.

    Args:
        config: its content.
        theirs: the tensors by name, which may say more than the config.
        path: the folder, for messages.

    Raises:
        UserError: no model is like it; the message names what differs.
    """
    name = config.get("model_type")
    family = _ALL.get(str(name))
    if config.get("auto_map"):
        raise UserError(f"{path}: its model is code of its own (auto_map), which is never run here")
    if family is None:
        raise UserError(
            f"{path}: model_type {name!r} cannot be imported; there are {', '.join(_ALL)}"
        )
    return family(config, theirs, path)
