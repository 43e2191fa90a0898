#!/usr/bin/env python3
"""Run `fairseq-train` or `fairseq-generate` of a fairseq that is installed without extensions.

    PYTHON_WITH_FAIRSEQ benchmarks/parity/fairseq_run.py train|generate [FLAG ...]

The extension that makes batches is replaced by a few lines of Python, which make the same ones.
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


def main() -> None:
    """Install the replacement and run the command."""
    fast = types.ModuleType("fairseq.data.data_utils_fast")
    fast.batch_by_size_vec, fast.batch_by_size_fn = batch_by_size_vec, batch_by_size_fn  # type: ignore[attr-defined]
    fast.batch_fixed_shapes_fast = None  # type: ignore[attr-defined]
    sys.modules[fast.__name__] = fast
    import_module("fairseq.data").data_utils_fast = fast
    command = sys.argv.pop(1)
    import_module(f"fairseq_cli.{command}").cli_main()


if __name__ == "__main__":
    main()
