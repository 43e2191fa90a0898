"""Examples whose sides are cut to a length, instead of being left out because they are long."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.blocks import cut_sentences
from ds_seq.data.source import Source, TokenBlock

_NO_LIMIT = np.iinfo(np.int32).max
Limits = tuple[int | None, int | None]
"""Most tokens of a source and of a target, end symbols included; None: the side is not cut."""
UNCUT: Limits = (None, None)


class TruncatedSource:
    """The examples of another source, with sides of at most so many tokens; see `Source`.

    A side that is cut keeps its first tokens and its end symbol. Files that were made from the
    other source belong to this one as well: both have the same fingerprint.

    Args:
        source: the examples.
        limits: see `Limits`.

    Attributes:
        limits: the limits.
    """

    def __init__(self, source: Source, limits: Limits) -> None:
        self._source, self.limits = source, limits
        self._most = np.array([_NO_LIMIT if most is None else most for most in limits], np.int32)
        self._lengths = np.minimum(source.lengths, self._most)

    @property
    def lengths(self) -> NDArray[np.integer]:
        """(N, sides) number of tokens of each side of each example, after the cut."""
        return self._lengths

    @property
    def vocab_hash(self) -> str:
        """See `Source.vocab_hash`."""
        return self._source.vocab_hash

    @property
    def vocab_size(self) -> int:
        """See `Source.vocab_size`."""
        return self._source.vocab_size

    @property
    def fingerprint(self) -> str:
        """See `Source.fingerprint`."""
        return self._source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, indices: NDArray[np.integer], /) -> tuple[TokenBlock, ...]:
        """See `Source.gather`."""
        blocks = self._source.gather(indices)
        return tuple(
            cut_sentences(block, np.full(len(block.lengths), most))
            for block, most in zip(blocks, self._most, strict=True)
        )


def limits_of(source: Source) -> Limits:
    """Return at what lengths a source cuts its examples."""
    return source.limits if isinstance(source, TruncatedSource) else UNCUT
