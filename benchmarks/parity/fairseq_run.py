#!/usr/bin/env python3
"""Run a command of a fairseq that is installed without extensions.

    PYTHON_WITH_FAIRSEQ benchmarks/parity/fairseq_run.py COMMAND [FLAG ...]

COMMAND is `train`, `generate`, `eval_lm` or another one. The extensions that make batches and
cut text into blocks are replaced by a few lines of Python, which make the same ones.
"""

from __future__ import annotations

import sys
import types
from importlib import import_module
from typing import Any

import numpy as np


def batch_by_size_vec(
    indices: Any, sizes: Any, max_tokens: int, max_sentences: int, multiple: int
) -> list[Any]:
    """Cut `indices`, in this order, into batches whose padded size is at most `max_tokens`."""
    batches, start, longest = [], 0, 0
    for place, size in enumerate(sizes):
        grown = max(longest, int(size))
        count = place - start + 1
        if (0 < max_sentences < count) or (0 < max_tokens < grown * count):
            kept = count - 1
            kept = max(multiple * (kept // multiple), kept % multiple) if kept >= multiple else kept
            batches.append(indices[start : start + kept])
            start += kept
            grown = int(max(sizes[start : place + 1]))
        longest = grown
    batches.append(indices[start:])
    return [batch for batch in batches if len(batch)]


def batch_by_size_fn(
    indices: Any, size_of: Any, max_tokens: int, max_sentences: int, multiple: int
) -> list[Any]:
    """Do the same with a function that returns the size of an index."""
    sizes = np.array([size_of(index) for index in indices], dtype=np.int64)
    return batch_by_size_vec(indices, sizes, max_tokens, max_sentences, multiple)


def slice_indices(sizes: Any, break_mode: str, block_size: int, _: int) -> Any:
    """Return where the blocks of a text begin and end (N, 2)."""
    if break_mode != "none":
        raise SystemExit(f"fairseq_run.py: --sample-break-mode {break_mode}: only none is there")
    total = int(np.sum(sizes))
    starts = np.arange(0, total, block_size)
    return np.stack([starts, np.minimum(starts + block_size, total)], axis=1)


def block_to_dataset_index(sizes: Any, blocks: Any) -> Any:
    """Return the first sentence of each block, where it begins in it, and the last sentence."""
    ends = np.cumsum(sizes)
    first = np.searchsorted(ends, blocks[:, 0], side="right")
    last = np.searchsorted(ends, np.maximum(blocks[:, 1] - 1, blocks[:, 0]), side="right")
    return np.stack([first, blocks[:, 0] - (ends - sizes)[first], last], axis=1)


def install() -> None:
    """Put the replacements where fairseq looks for its extensions."""
    fast = types.ModuleType("fairseq.data.data_utils_fast")
    fast.batch_by_size_vec, fast.batch_by_size_fn = batch_by_size_vec, batch_by_size_fn  # type: ignore[attr-defined]
    fast.batch_fixed_shapes_fast = None  # type: ignore[attr-defined]
    sys.modules[fast.__name__] = fast
    blocks = types.ModuleType("fairseq.data.token_block_utils_fast")
    blocks._get_slice_indices_fast = slice_indices  # type: ignore[attr-defined]
    blocks._get_block_to_dataset_index_fast = block_to_dataset_index  # type: ignore[attr-defined]
    sys.modules[blocks.__name__] = blocks
    import_module("fairseq.data").data_utils_fast = fast


def main() -> None:
    """Install the replacements and run the command."""
    install()
    command = sys.argv.pop(1)
    import_module(f"fairseq_cli.{command}").cli_main()


if __name__ == "__main__":
    main()
