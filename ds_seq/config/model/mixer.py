"""The layers that mix information between tokens: attention."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from ds_seq.config.base import Config, Probability
from ds_seq.config.model.stack import Width
from ds_seq.names import Stack

MIXERS_PER_LAYER: Mapping[Stack, int] = {"encoder": 1, "decoder": 2}
"""A decoder layer attends to its own tokens and to the source."""


class MixerFields(Config):
    """Multi-head attention."""

    num_heads: Width = Field(default=8, description="Attention heads.")
    attention_dropout: Probability = Field(default=0.0, description="Dropout on attention weights.")

    def mixer_errors(self, d_model: int) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        if d_model % self.num_heads:
            return [("num_heads", f"{self.num_heads} does not divide model.d_model {d_model}")]
        return []

    def mixer_params(self, d_model: int, stack: Stack) -> int:
        """Return the number of parameters of the mixers of one layer of `stack`."""
        # maps of queries, keys, values and output, with biases
        attention = 4 * (d_model * d_model + d_model)
        return MIXERS_PER_LAYER[stack] * attention
