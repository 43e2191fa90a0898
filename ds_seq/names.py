"""Closed sets of words that both the config and the parts use, each written once.

Imports neither torch nor pydantic, so that every part may read it and `ds-seq check` stays quick.
"""

from __future__ import annotations

LOSS = "loss"
"""The figure of a validation that is always there: what training minimizes, per token."""

TEXT_METRICS = (
    "bleu",
    "chrf",
    "chrf++",
    "ter",
    "rouge1",
    "rouge2",
    "rougeL",
    "rougeLsum",
)
"""Metrics of a text against references."""
