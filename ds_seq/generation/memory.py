"""Recovery from running out of memory during a search."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds_seq.errors import UserError
from ds_seq.search.beam_search import AnyRank, BeamSearch, CacheT, Decodable, EncodedT
from ds_seq.search.hypotheses import Hypothesis

# Errors without a class of their own: PyTorch's allocator on a CPU, oneDNN, and what CUDA and its
# libraries allocate themselves.
_SIGNS = (
    "DefaultCPUAllocator",
    "could not create a primitive",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",
)


def try_search(
    model: Decodable[EncodedT, CacheT],
    search: BeamSearch,
    source: Tensor,
    source_mask: Tensor,
    any_rank: AnyRank | None,
    numbers: list[int],
) -> list[list[Hypothesis]] | None:
    """Search a batch; see `BeamSearch.search` for the arguments.

    Returns:
        The hypotheses, or None if memory ran out. All allocated memory is free by then, because
        the traceback of the error, which holds the tensors, ends here.
    """
    try:
        return search.search(model, source, source_mask, any_rank, numbers)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Return whether `error` says that memory has run out, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(sign in str(error) for sign in _SIGNS)


class Room:
    """The largest batch size that fits, learned from batches that were too large.

    Batches have about the same size; without this record, each would fail before it is split.
    """

    def __init__(self) -> None:
        self._most: int | None = None

    def holds(self, size: int) -> bool:
        """Return whether a batch of `size` tokens, padding included, may fit."""
        return self._most is None or size <= self._most

    def overflow(self, batch: NDArray[np.int64], size: int, any_rank: AnyRank | None) -> None:
        """Record that a batch did not fit, so that half of its size is tried next.

        Args:
            batch: numbers of its sentences in the whole input.
            size: number of its tokens, padding included.
            any_rank: see `BeamSearch.search`.

        Raises:
            UserError: the batch is a single sentence, or other ranks are in the middle of the same
                collective search and cannot restart.
        """
        if any_rank is not None:
            raise UserError(
                f"out of memory with a batch of {len(batch)} sentence(s), {size:,} tokens, which "
                "cannot be split while experts are spread over processes; lower --max-tokens "
                "or --beam"
            )
        if len(batch) == 1:
            raise UserError(
                f"line {batch[0] + 1}: out of memory with this sentence of {size:,} tokens alone; "
                "shorten it, or lower --beam or --max-len-a"
            )
        half = -(-len(batch) // 2) * (size // len(batch))
        # searches in other threads may have lowered the limit in the meantime
        self._most = half if self._most is None else min(self._most, half)
        torch.cuda.empty_cache()  # its blocks have the wrong size; does nothing without a GPU
