"""Model sections as earlier versions wrote them, in the form of today.

A run folder keeps its whole experiment in `config.yaml` and must load in later versions. Fields
that were renamed or moved since then are translated here, before the section is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def upgraded(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section in the form of today.

    Args:
        section: `model` as in a file, not yet checked.
    """
    new = dict(section)
    # once all models had `options`, empty unless the model was external (`package.module:Name`)
    if new.get("options", "absent") in ({}, None) and ":" not in str(new.get("name", "")):
        del new["options"]
    return new
