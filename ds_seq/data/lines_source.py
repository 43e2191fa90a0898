"""Lines of text in memory as a `Source` of one side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.source import TokenBlock
from ds_seq.text.tokenizer import Tokenizer


class LinesSource:
    """The ids of some lines, encoded at once.

    Args:
        tokenizer: tokenizer of the lines.
        lines: normalized text; an empty line has the end symbol alone.
    """

    def __init__(self, tokenizer: Tokenizer, lines: Sequence[str]) -> None:
        symbols = tokenizer.symbols
        sentences = [symbols.framed(ids) for ids in tokenizer.encode_lines(lines)]
        self._tokens, lengths = TokenBlock.of(sentences)
        self._ends = np.cumsum(lengths)
        self.lengths: NDArray[np.integer] = lengths[:, None]
        self.vocab_hash, self.vocab_size = tokenizer.fingerprint, len(tokenizer)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the ids."""
        return hashlib.sha256(self._tokens.tobytes() + self.lengths.tobytes()).hexdigest()

    def gather(self, indices: NDArray[np.integer]) -> tuple[TokenBlock, ...]:
        """Copy at least one line; see `Source.gather`."""
        lengths = self.lengths[indices, 0].astype(np.int64)
        starts = self._ends[indices] - lengths
        inner = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return (TokenBlock(self._tokens[np.repeat(starts, lengths) + inner], lengths),)
