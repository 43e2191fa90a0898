"""Closed sets of words that both the config and the parts use, each written once.

Imports neither torch nor pydantic, so that every part may read it and `ds-seq check` stays quick.
"""

from __future__ import annotations

from typing import Literal

ActivationName = Literal["relu", "gelu", "swiglu"]
"""Activations of feed-forwards and experts; `ds_seq.modules.activations` has their functions."""

GATED: dict[ActivationName, bool] = {"relu": False, "gelu": False, "swiglu": True}
"""Whether an activation reads a gate and a value: then the first map is two of D -> F."""
