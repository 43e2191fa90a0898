"""Length penalties: how the length of a finished hypothesis affects its score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

from torch import Tensor

from ds_seq.names import LengthPenaltyForm


@dataclass(frozen=True)
class LengthPenalty:
    """Divides the sum of log-probabilities of a hypothesis by `divisor(length)`.

    Attributes:
        exponent: exponent of the length; 0 is no penalty, higher values favor longer translations.
        form: formula of the divisor. `fairseq`: `length ** exponent`; `gnmt`:
            `((5 + length) / 6) ** exponent`, which is 1 for a single token (Wu et al., 2016,
            "Google's Neural Machine Translation System", https://arxiv.org/abs/1609.08144,
            equation 14).
    """

    exponent: float = 1.0
    form: LengthPenaltyForm = "fairseq"

    @overload
    def divisor(self, length: int) -> float: ...
    @overload
    def divisor(self, length: Tensor) -> Tensor: ...

    def divisor(self, length: int | Tensor) -> float | Tensor:
        """Return the divisor of the sum of log-probabilities.

        Args:
            length: number of tokens of a hypothesis including its end symbol; a number, or a tensor
                of any shape.
        """
        if self.form == "gnmt":
            return ((5 + length) / 6) ** self.exponent
        quotient: float | Tensor = length**self.exponent
        return quotient
