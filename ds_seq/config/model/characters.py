"""Embeddings of tokens from the bytes of their pieces: `model.character_embeddings`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ds_seq.config.base import Config

_Filter = Annotated[list[Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=2, max_length=2)]
BYTES = 257
"""A byte has one of 256 values, and there is one row for none."""


class CharacterConfig(Config):
    """A convolutional network over bytes (Kim et al. 2016, Jozefowicz et al. 2016)."""

    filters: Annotated[list[_Filter], Field(min_length=1, max_length=100)] = Field(
        default=[[1, 64], [2, 128], [3, 192], [4, 256], [5, 256], [6, 256], [7, 256]],
        description="Convolutions, each as `[bytes under its kernel, channels]`.",
    )
    embedding_dim: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=4, description="Width of the embeddings of bytes."
    )
    highway_layers: Annotated[int, Field(ge=0, le=100)] = Field(
        default=2, description="Number of highway layers (Srivastava et al. 2015)."
    )
    max_bytes: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=50, description="How many bytes of a piece are read; the others are left out."
    )

    @property
    def channels(self) -> int:
        """Channels of all convolutions together."""
        return sum(channels for _, channels in self.filters)

    def num_params(self, d_model: int) -> int:
        """Return the number of parameters."""
        width, dim = self.channels, self.embedding_dim
        convolutions = sum(channels * (size * dim + 1) for size, channels in self.filters)
        highway = self.highway_layers * 2 * width * (width + 1)
        # two vectors stand for the end of a text and for an unknown token
        return BYTES * dim + convolutions + highway + (width + 1 + 2) * d_model

    def matrices(self, d_model: int) -> list[int]:
        """Return the sizes of all matrices but the table of bytes."""
        kernels = [channels * size * self.embedding_dim for size, channels in self.filters]
        highway = [2 * self.channels**2] * self.highway_layers
        return [*kernels, *highway, self.channels * d_model]

    def errors(self) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        most = max(size for size, _ in self.filters)
        if most <= self.max_bytes:
            return []
        message = f"{most} bytes under a kernel are more than max_bytes {self.max_bytes}; lower it"
        return [("character_embeddings.filters", message)]
