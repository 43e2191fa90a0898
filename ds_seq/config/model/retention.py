"""Retention in place of a stack's self-attention: `decoder_mixer: retention`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ds_seq.config.base import FieldErrors, NamedConfig
from ds_seq.config.model.stack import Width
from ds_seq.names import GateActivation

CHUNK, LONGEST_WHOLE = 128, 256
"""Tokens of a chunk, and the longest text that is computed at once, if no size is given."""
Memory = Annotated[float, Field(ge=2.0, le=1e9)]


class RetentionConfig(NamedConfig):
    """Multi-scale retention (RetNet, Sun et al. 2023): decoding in constant time and memory.

    It knows the order of tokens, so that its stack has no other positions.
    """

    name: Literal["retention"] = Field(default="retention", description="Selects this mixer.")
    num_heads: Width | None = Field(
        default=None,
        description="Heads, each with a decay of its own; null: `model.num_heads`. A head as wide "
        "as 256, as in the paper, keeps more of the past than a narrow one, in a larger state.",
    )
    value_width: Width | None = Field(
        default=None, description="Width of the values of all heads; null: twice `d_model`."
    )
    shortest_memory: Memory = Field(
        default=32.0,
        description="Distance in tokens at which the first head has about a third of the weight "
        "left: its decay is 1 - 1 / this.",
    )
    longest_memory: Memory | None = Field(
        default=None,
        description="The same of the last head, with those between in geometric progression; null: "
        "each head remembers twice as long as the one before, as in the paper.",
    )
    gate_activation: GateActivation = Field(
        default="silu", description="Activation of the gate that multiplies the normed output."
    )
    theta: Annotated[float, Field(gt=1.0, le=1e9)] = Field(
        default=10000.0, description="Base of the angles by which queries and keys are rotated."
    )
    eps: float = Field(
        default=1e-6,
        gt=0.0,
        le=1.0,
        description="Added to the mean square in the norm of each head's output.",
    )
    chunk_size: Width | None = Field(
        default=None,
        description="Compute whole sequences in chunks of this many tokens, in time and memory "
        "that grow with the length and not with its square; null: at once up to 256 tokens, in "
        "chunks of 128 in longer ones. All results are equal.",
    )

    @model_validator(mode="after")
    def _check_memory(self) -> RetentionConfig:
        if self.longest_memory is not None and self.longest_memory < self.shortest_memory:
            message = f"must be at least shortest_memory ({self.shortest_memory:g})"
            raise FieldErrors([("longest_memory", message)])
        return self

    def heads(self, num_heads: int) -> int:
        """Return the number of heads of a model whose `num_heads` is this."""
        return self.num_heads or num_heads

    def values(self, d_model: int) -> int:
        """Return the width of the values of all heads of a model of width `d_model`."""
        return self.value_width or 2 * d_model

    def chunk_of(self, length: int) -> int:
        """Return the number of tokens of a chunk in texts of a length."""
        return self.chunk_size or (length if length <= LONGEST_WHOLE else CHUNK)

    def errors(self, d_model: int, num_heads: int) -> list[tuple[str, str]]:
        """Return settings that do not fit the model as (field, message) pairs."""
        heads, values = self.heads(num_heads), self.values(d_model)
        if d_model % (2 * heads):
            need = "a width of queries that is even, as pairs are rotated"
            message = f"{heads} heads of a model of width {d_model} do not have {need}"
            return [("num_heads", message)]
        if values % heads:
            return [("value_width", f"{values} is no multiple of the number of heads, {heads}")]
        return []

    def size(self, d_model: int) -> tuple[int, int]:
        """Return the numbers of weights and biases of both maps."""
        values = self.values(d_model)
        return d_model * (2 * d_model + 3 * values), 3 * d_model + 2 * values
