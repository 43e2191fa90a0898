"""The embedding tables, and which of them are shared."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ds_seq.config.base import Config


class EmbeddingFields(Config):
    """Sharing of the embedding tables."""

    share_embeddings: Literal["none", "decoder", "all"] = Field(
        default="all",
        description="Shared embedding tables: none; decoder input and output; all three.",
    )

    def embedding_params(self, d_model: int, vocab_size: int) -> int:
        """Return the number of parameters of the source, target and output tables."""
        tables = {"none": 3, "decoder": 2, "all": 1}[self.share_embeddings]
        return tables * vocab_size * d_model
