"""Upgrade model sections that were written by earlier versions.

A run folder stores its whole experiment in `config.yaml`, which must load in later versions. Fields
that have since been renamed or moved are translated here, before the section is checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from ds_seq.config.model.section import ModelSection, OtherModel

# The fields of version 0.1.0, in the order in which it wrote them.
_FIRST_FIELDS = (
    "name options preset d_model encoder_layers decoder_layers num_heads ffn_dim activation "
    "dropout attention_dropout activation_dropout norm_position positions max_positions "
    "share_embeddings activation_checkpointing moe"
).split()
_FIRST_MOE_FIELDS = (
    "num_experts top_k placement every layers ffn_dim router router_dim bias_rate noise "
    "second_expert normalize_weights capacity_factor eval_capacity_factor min_capacity drop "
    "residual shared_experts conditional_budget conditional_dropout output_masking load_balance"
).split()


def upgraded(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section in its current form.

    Args:
        section: content of `model` in a file, not yet checked.
    """
    new = dict(section)
    # all models used to have `options`, empty unless the model was external (`package.module:Name`)
    if new.get("options", "absent") in ({}, None) and ":" not in str(new.get("name", "")):
        del new["options"]
    return new


def stable_json(model: BaseModel) -> bytes:
    """Return the section as JSON that stays the same when the schema grows.

    Fingerprints are made of it, and unfinished work of an earlier version is resumed only under the
    same fingerprint. Fields of version 0.1.0 are always there, in its order. Later fields follow
    where they differ from their defaults.

    Args:
        model: the `model` section.
    """
    changed = model.model_dump(mode="json", exclude_defaults=True)
    has_one_stack = isinstance(model, ModelSection) and len(model.stacks) == 1
    if isinstance(model, OtherModel) or has_one_stack:  # version 0.1.0 had none
        return to_json({"name": vars(model)["name"], **changed})
    section = {"options": {}, **model.model_dump(mode="json")}
    # without options that version 0.1.0 did not have
    section["positions"] = changed.get("positions", "sinusoidal")
    if section["moe"] is not None:
        section["moe"] = _stable(section["moe"], changed["moe"], _FIRST_MOE_FIELDS)
    return to_json(_stable(section, changed, _FIRST_FIELDS))


def _stable(
    section: Mapping[str, Any], changed: Mapping[str, Any], first: Sequence[str]
) -> dict[str, Any]:
    later = [name for name in section if name in changed and name not in first]
    return {name: section[name] for name in (*first, *later)}
