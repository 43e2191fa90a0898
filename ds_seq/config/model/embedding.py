"""The embedding tables: which of them are shared, their width, scale and norm."""

from __future__ import annotations

from pydantic import Field

from ds_seq.config.base import Config
from ds_seq.config.model.stack import Width
from ds_seq.names import EmbeddingSharing


class SharingFields(Config):
    """Which embedding tables are one."""

    share_embeddings: EmbeddingSharing = Field(
        default="all",
        description="Shared embedding tables: `none`; `decoder`, its input and output; `inputs` of "
        "encoder and decoder, as in T5 1.1; `all` three.",
    )

    @property
    def shares_inputs(self) -> bool:
        """Whether source and target have one table."""
        return self.share_embeddings in ("inputs", "all")

    @property
    def shares_output(self) -> bool:
        """Whether the output projection is the table of the target."""
        return self.share_embeddings in ("decoder", "all")


class EmbeddingFields(SharingFields):
    """Sharing, width, scale and norm of the embeddings."""

    output_bias: bool = Field(
        default=False, description="A bias of the scores of the vocabulary, as in Marian."
    )
    embedding_dim: Width | None = Field(
        default=None,
        description="Width of factorized embeddings, which a matrix maps to `d_model`; shared "
        "output projections are factorized alike. Null: `d_model`, without a matrix.",
    )
    embedding_scale: bool = Field(
        default=True, description="Multiply embeddings by the square root of `d_model`."
    )
    embedding_norm: bool = Field(
        default=False, description="Norm on the embeddings with their positions."
    )

    def embedding_errors(self, d_model: int) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        if self.embedding_dim is not None and self.embedding_dim >= d_model:
            message = f"{self.embedding_dim} saves nothing: it must be below d_model {d_model}"
            return [("embedding_dim", message)]
        return []

    def embedding_params(self, d_model: int, vocab_size: int, source_vocab_size: int) -> int:
        """Return the number of parameters of the source, target and output tables."""
        sizes = [vocab_size] if self.shares_inputs else [vocab_size, source_vocab_size]
        width, factor = d_model, 0
        if self.embedding_dim is not None:
            width, factor = self.embedding_dim, self.embedding_dim * d_model
        output = 0 if self.shares_output else vocab_size * d_model
        output += vocab_size if self.output_bias else 0
        return sum(size * width + factor for size in sizes) + output
