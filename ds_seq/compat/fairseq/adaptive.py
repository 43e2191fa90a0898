"""What the arguments of fairseq say about adaptive input and adaptive softmax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ds_seq.compat.fairseq.flag import numbers
from ds_seq.compat.fairseq.refusals import Refusals

ADAPTIVE_LOSS = "adaptive_loss"
"""The criterion without which some models of fairseq have an ordinary softmax."""
ADAPTIVE = (
    "adaptive_input", "adaptive_softmax_cutoff", "tie_adaptive_weights", "tie_adaptive_proj",
)  # fmt: skip
"""Arguments of language models, which a translation model refuses."""
_FACTOR = 4


def adaptive_section(arguments: Mapping[str, Any], refusals: Refusals) -> dict[str, Any]:
    """Return `adaptive` and `share_embeddings` of a model that may have both kinds of bands.

    Args:
        arguments: the arguments, by their names with underscores.
        refusals: gets what no model of ds_seq has.

    Returns:
        The fields; none for a model without bands.
    """
    has_input, cutoffs = bool(arguments.get("adaptive_input")), _cutoffs("softmax", arguments)
    if cutoffs is None:
        if has_input:
            refusals.add("--adaptive-input: needs --adaptive-softmax-cutoff here; there are no "
                         "bands of the input alone")  # fmt: skip
        return {}
    factor = _factor("softmax", arguments, refusals)
    if has_input:
        of_input = _cutoffs("input", arguments), _factor("input", arguments, refusals)
        if of_input != (cutoffs, factor):
            refusals.add("--adaptive-input-cutoff, --adaptive-input-factor: must be those of the "
                         "softmax; input and softmax have the same bands here")  # fmt: skip
    tied = has_input and bool(arguments.get("tie_adaptive_weights"))
    ties = arguments.get("tie_adaptive_proj") or arguments.get("no_tie_adaptive_proj") is False
    return {
        "share_embeddings": "all" if tied else "none",
        "adaptive": {
            "cutoffs": cutoffs,
            "factor": factor,
            "input": has_input,
            "tie_projections": tied and bool(ties),
            "softmax_dropout": float(arguments.get("adaptive_softmax_dropout") or 0.0),
        },
    }


def adaptive_softmax(
    arguments: Mapping[str, Any], dropout: float | None = None
) -> dict[str, Any] | None:
    """Return `adaptive` of a model that has it with its criterion alone; None without.

    Args:
        arguments: the arguments, by their names with underscores.
        dropout: dropout of the softmax; None: as the arguments say.
    """
    cutoffs = _cutoffs("softmax", arguments)
    if arguments.get("criterion") != ADAPTIVE_LOSS or cutoffs is None:
        return None
    if dropout is None:
        dropout = float(arguments.get("adaptive_softmax_dropout") or 0.0)
    return {"cutoffs": cutoffs, "factor": _FACTOR, "input": False, "softmax_dropout": dropout}


def _cutoffs(part: str, arguments: Mapping[str, Any]) -> list[int] | None:
    """Return where bands begin; a list that cannot be read is empty, which no model accepts."""
    value = arguments.get(f"adaptive_{part}_cutoff")
    if value in (None, ""):
        return None
    try:
        return [int(each) for each in numbers(value)]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return []


def _factor(part: str, arguments: Mapping[str, Any], refusals: Refusals) -> int:
    value = arguments.get(f"adaptive_{part}_factor")
    value = _FACTOR if value is None else value
    if not isinstance(value, int | float) or value != int(value):
        refusals.add(f"--adaptive-{part}-factor {value}: must be a whole number here")
        return _FACTOR
    return int(value)
