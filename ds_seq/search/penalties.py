"""What the length of a finished hypothesis does to its score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

from torch import Tensor

from ds_seq.names import LengthPenaltyForm


@dataclass(frozen=True)
class LengthPenalty:
    """A hypothesis scores ``sum of log-probabilities / divisor(length)``.

    Attributes:
        exponent: 0 is no penalty; higher favors longer translations.
        form: ``fairseq`` divides by ``length ** exponent``; ``gnmt`` by
            ``((5 + length) / 6) ** exponent``, which is 1 for a single token: Wu et al., 2016,
            "Google's Neural Machine Translation System", https://arxiv.org/abs/1609.08144,
            equation 14.
    """

    exponent: float = 1.0
    form: LengthPenaltyForm = "fairseq"

    @overload
    def divisor(self, length: int) -> float: ...
    @overload
    def divisor(self, length: Tensor) -> Tensor: ...

    def divisor(self, length: int | Tensor) -> float | Tensor:
        """What a sum is divided by.

        Args:
            length: tokens of a hypothesis with its end symbol, one number or a tensor of any shape.
        """
        if self.form == "gnmt":
            return ((5 + length) / 6) ** self.exponent
        quotient: float | Tensor = length**self.exponent
        return quotient
