"""What the sections of language models that are no Transformer have in common."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ds_seq.config.model.adaptive import AdaptiveConfig
from ds_seq.config.model.embedding import SharingFields
from ds_seq.config.model.section import OtherModel
from ds_seq.names import AttentionKind, EmbeddingSharing, Stack


class LanguageModelFields(SharingFields, OtherModel):
    """A model without a source, whose softmax may be adaptive and whose input is one table."""

    stacks: ClassVar[tuple[Stack, ...]] = ("decoder",)

    adaptive: AdaptiveConfig | None = Field(
        default=None,
        description="Adaptive softmax; with `input: false`, as the input is an ordinary table.",
    )

    @property
    def adaptive_bands(self) -> AdaptiveConfig | None:
        """See `ModelSection`."""
        return self.adaptive

    def adaptive_errors(
        self, width: int, sharing: EmbeddingSharing, name: str
    ) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs.

        Args:
            width: width of the states before the softmax.
            sharing: which tables are shared.
            name: name of the model, for messages.
        """
        if self.adaptive is None:
            return []
        if self.adaptive.input:
            message = f"true, but the input of a model {name} is an ordinary table; use false"
            return [("adaptive.input", message)]
        return list(self.adaptive.errors(width, sharing))

    @property
    def attention_maps(self) -> tuple[AttentionKind, ...]:
        """There is no attention."""
        return ()

    @property
    def shares_inputs(self) -> bool:
        """See `SharingFields`: there is one input."""
        return True
