"""What a Hugging Face folder holds: the sections of its model, and where its tensors are."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from ds_seq.config.huggingface.experts import sections
from ds_seq.config.huggingface.facts import Facts
from ds_seq.runs.formats.huggingface.families import FAMILIES
from ds_seq.runs.formats.huggingface.mapping import Names
from ds_seq.runs.formats.huggingface.moe_families import MOE_FAMILIES

_ALL = {**FAMILIES, **MOE_FAMILIES}


class Described(NamedTuple):
    """A model of ds_seq.

    Attributes:
        section: fields of `model`.
        names: its tensors.
        copies: tensors of theirs that are not read -> why.
        criterion: fields of `criterion`; empty: its defaults.
    """

    section: dict[str, Any]
    names: Names
    copies: Mapping[str, str]
    criterion: dict[str, Any]


def describe(
    settings: Mapping[str, Any], facts: Facts, stored: Container[str], path: str
) -> Described:
    """Return the model of ds_seq that a `config.json` describes.

    Args:
        settings: its content.
        facts: what the tensors say beyond it.
        stored: names of the tensors.
        path: the folder, for messages.

    Raises:
        UserError: no model is like it; the message names what differs.
    """
    model, criterion = sections(settings, facts, path)
    names, copies = _ALL[settings["model_type"]](settings, model, facts, stored)
    return Described(model, names, copies, criterion)
