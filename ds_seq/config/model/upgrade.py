"""Model sections as earlier versions wrote them, in the form of today.

A run folder keeps its whole experiment in `config.yaml`, and has to load and translate for as long
as it lies there. What a section was called, or where it stood, is therefore put right here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EXTERNAL_SIGN = ":"


def upgraded(section: Mapping[str, Any]) -> dict[str, Any]:
    """The same section, without what is no longer there.

    Args:
        section: of `model`, as in a file; not yet checked.
    """
    new = dict(section)
    # every model had options, and all but external ones none
    if not new.get("options", True) and EXTERNAL_SIGN not in str(new.get("name", "")):
        del new["options"]
    return new
