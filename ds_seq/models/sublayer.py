"""One entry of a layer: a body, and the residual around it."""

from __future__ import annotations

from typing import NamedTuple

from ds_seq.modules.body import Body
from ds_seq.modules.residual import Residual


class SubLayer(NamedTuple):
    """A body in its residual. A value and no module: a layer registers both under its own names."""

    residual: Residual
    """Joins what goes in and what comes out; brings norm and dropout."""
    body: Body
    """Attention, feed-forward, or whatever else has this interface."""
