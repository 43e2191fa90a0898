"""Several sets of parameters in one stack, by language or modality: `multiway`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from ds_seq.config.base import Config, FieldErrors
from ds_seq.names import Placement, Stack

_MOST_SETS = 256

ParameterSet = Annotated[int, Field(ge=0, lt=_MOST_SETS)]


class MultiwayConfig(Config):
    """Multiway layers (Bao et al. 2022, "VLMo"; BEiT-3): attention joins tokens of all sets."""

    markers: dict[str, ParameterSet] = Field(
        description="Tokens of the source vocabulary, and the set (0, 1, ...) of each: source "
        "tokens use the set of the last marker up to them, set 0 before the first. So a language "
        "tag chooses one set for a sentence, and a separator splits each sentence where it stands. "
        "Decoder and cross-attention use the set of the first source token.",
    )
    placement: Placement = Field(default="both", description="Stacks with several sets.")

    @property
    def num_sets(self) -> int:
        """Number of parameter sets."""
        return 1 + max(self.markers.values(), default=0)

    @model_validator(mode="after")
    def _check_markers(self) -> MultiwayConfig:
        missing = sorted(set(range(1, self.num_sets)) - set(self.markers.values()))
        if self.num_sets < 2:
            raise FieldErrors([("markers", "all tokens use set 0; give a marker of set 1")])
        if missing:
            raise FieldErrors([("markers", f"no marker has set {missing[0]}; number them from 0")])
        return self


class MultiwayFields(Config):
    """Sets of parameters by language or modality."""

    multiway: MultiwayConfig | None = Field(
        default=None,
        description="Several sets of the parameters of a stack, by language or modality: linear "
        "maps, norms, feed-forwards. Shared by all sets are embeddings, positions, and experts, "
        "which their router chooses. Null: one set.",
    )

    def sets_of(self, stack: Stack) -> int:
        """Return the number of parameter sets of a stack."""
        if self.multiway is None or self.multiway.placement not in (stack, "both"):
            return 1
        return self.multiway.num_sets

    def multiway_errors(self, has_lora: bool) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        if self.multiway is None or not has_lora:
            return []
        message = (
            "and lora are both given; a low-rank change belongs to one map, and there is one for "
            "each set: train the sets, or use adapters, whose ids follow language tags"
        )
        return [("multiway", message)]
