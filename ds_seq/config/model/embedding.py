"""The tables between tokens and hidden states."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ds_seq.config.base import Config


class EmbeddingFields(Config):
    """Which tables are one."""

    share_embeddings: Literal["none", "decoder", "all"] = Field(
        default="all",
        description="Tables that are one: none; decoder input and output; all three.",
    )

    def embedding_params(self, d_model: int, vocab_size: int) -> int:
        """Parameters of the tables of source, target and output."""
        tables = {"none": 3, "decoder": 2, "all": 1}[self.share_embeddings]
        return tables * vocab_size * d_model
