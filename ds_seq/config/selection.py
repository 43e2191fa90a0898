"""Lists of parts of a model: words such as `encoder` and `adapters.de`, or patterns of names."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from ds_seq.config.base import shown
from ds_seq.names import MODEL_PARTS
from ds_seq.plugins import nearest

SELECTION_HELP = (
    "`encoder`, `decoder`, `embeddings`, `experts`, `routers`, `adapters`, `adapters.ID`, `lora`, "
    "or the name of a module or parameter, in which `*` stands for anything"
)


def _checked(entry: str) -> str:
    """Refuse a word that is no part and cannot be the name of a parameter or a pattern."""
    if entry in MODEL_PARTS or any(sign in entry for sign in ".*?["):
        return entry
    raise ValueError(
        f"no part {shown(entry)}{nearest(entry, MODEL_PARTS)}; there are {', '.join(MODEL_PARTS)}, "
        "adapters.ID, and names and patterns such as decoder.layers.0 or *.norm.*"
    )


PartName = Annotated[str, AfterValidator(_checked)]
