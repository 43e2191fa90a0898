"""Upgrade model sections that were written by earlier versions.

A run folder stores its whole experiment in `config.yaml`, which must load in later versions. Fields
that have since been renamed or moved are translated here, before the section is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
