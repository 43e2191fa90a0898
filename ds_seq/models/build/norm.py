"""Build norms; all norms of a model are of the same kind."""

from __future__ import annotations

from torch import nn

from ds_seq.config.model import TransformerConfig
from ds_seq.modules.norm import NORMS


def make_norm(cfg: TransformerConfig, width: int | None = None, sets: int = 1) -> nn.Module:
    """Make a norm of this width, or one for each of several sets; None: of hidden states."""
    norms = [NORMS[cfg.norm.name](width or cfg.d_model, cfg.norm.eps) for _ in range(sets)]
    if sets == 1:
        return norms[0]
    from ds_seq.modules.multiway import Multiway

    return Multiway(norms)
