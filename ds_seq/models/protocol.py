"""What the rest of ds_seq may ask of a model, whatever kind of model it is.

Training asks a model for `__call__` alone, translating for the rest. Statistics of experts belong
to the layers that `ds_seq.moe.calls.moe_calls` finds. Whoever reads or changes the inside of a
model, such as a conversion to another format, asks for its class and refuses others by name.

Shapes: B batch, S source length, N rows, D width of the encoded source, K beam width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.models.output import ModelOutput
from ds_seq.names import Capture

if TYPE_CHECKING:
    from ds_seq.modules.adapter import AdapterChoice


class Encoded(Protocol):
    """What every encoder returns; models add what their decoders need."""

    @property
    def hidden(self) -> Tensor:
        """(B, S, D)."""

    @property
    def mask(self) -> Tensor:
        """(B, S) bool, True at real tokens."""


class TranslationModel(Protocol):
    """A model of a target given a source.

    All methods but `decode_step` return the same for a sentence whatever else is in its batch.
    Parameters are used within calls of modules only, because ZeRO stage 3 gathers them there.
    """

    max_positions: int
    """Longest sequence that the model is meant for, in tokens."""

    def __call__(self, inputs: Seq2SeqInputs, capture: Capture = "none") -> ModelOutput:
        """Score a target given its source.

        Args:
            inputs: source and target; the rows of `target_mask` are scored.
            capture: which outputs of the layers to return; a model without them returns none.
        """

    def encode(self, source: Tensor, source_mask: Tensor) -> Any:
        """Encode source tokens (B, S) and return an `Encoded`; the mask is True at real tokens."""

    def start_cache(self, encoded: Any, beam: int, max_length: int) -> Any:
        """Return a `ds_seq.search.beam_search.Cache` for at most `max_length` steps.

        Args:
            encoded: what `encode` has returned.
            beam: number of hypotheses per sentence, K.
            max_length: largest number of steps.
        """

    def decode_step(self, tokens: Tensor, cache: Any) -> Tensor:
        """Feed one token to each hypothesis (N,) and return the logits (N, V) of the next token."""


@runtime_checkable
class OffersAdapters(Protocol):
    """A model whose sentences may pass through adapters."""

    adapters: AdapterChoice | None
    """How the adapter of each sentence is chosen; None: none is used."""
