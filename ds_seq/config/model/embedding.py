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

    def embedding_params(self, d_model: int, vocab_size: int, source_vocab_size: int) -> int:
        """Return the number of parameters of the source, target and output tables."""
        of_source = 0 if self.share_embeddings == "all" else source_vocab_size
        of_target = vocab_size * (2 if self.share_embeddings == "none" else 1)
        return (of_source + of_target) * d_model
