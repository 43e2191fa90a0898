"""Kernels of a search in C (`native.c`), for what PyTorch computes with many small operators.

They are compiled when ds_seq is installed on a machine that has GCC 12 or newer, or Clang:
`pip install -e .`, or `python setup.py build_ext --inplace` in a checkout. Nothing is compiled
later. Where they are missing, the operators of PyTorch compute the same, up to rounding.
`DS_SEQ_NATIVE=0` in the environment turns them off.

A kernel runs on one thread and reads nothing of other sentences, so what it returns for a sentence
does not depend on the batch, to the last digit.

Shapes: B sentences, T queries, H heads, H' heads of keys and values, S keys, Dh width of a head,
A sentences of K rows (N = A K), V columns, C results.
"""

from __future__ import annotations

import ctypes
import math
import os
import warnings
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from ds_seq.modules.native_sources import digest

# those of native_lanes.h
LANES = 16
_MOST_KEYS = 2048

_MOST_RESULTS = 64  # results are found by insertion
_NUMBER, _ADDRESS = ctypes.c_int64, ctypes.c_void_p
_Strides, _Sizes = _NUMBER * 11, _NUMBER * 6


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where there are none."""
    if os.environ.get("DS_SEQ_NATIVE") == "0":
        return None
    places = (Path(__file__).with_name(f"_native{suffix}") for suffix in EXTENSION_SUFFIXES)
    path = next((place for place in places if place.is_file()), None)
    return None if path is None else load(path)


def load(path: Path) -> ctypes.CDLL | None:
    """Return the kernels in a file, or None if they are of another machine or other sources."""
    arguments = {
        "ds_seq_attend": [*[_ADDRESS] * 7, ctypes.c_float],
        "ds_seq_best": [*[_ADDRESS] * 5, *[_NUMBER] * 4],
        "ds_seq_log_softmax": [_ADDRESS, _NUMBER, _NUMBER],
        "ds_seq_step": [*[_ADDRESS] * 3, *[_NUMBER] * 2, _ADDRESS],
        "ds_seq_reorder": [*[_ADDRESS] * 2, _NUMBER],
        "ds_seq_search_step": [*[_ADDRESS] * 4, _NUMBER],
        "ds_seq_encode": [*[_ADDRESS] * 3, _NUMBER, _ADDRESS],
        "ds_seq_map_rows": [*[_ADDRESS] * 2, _NUMBER, _ADDRESS],
        "ds_seq_rows_by_weights": [*[_ADDRESS] * 4, *[_NUMBER] * 4, _ADDRESS],
        "ds_seq_rows_by_turned_weights": [*[_ADDRESS] * 4, *[_NUMBER] * 3, _ADDRESS],
        "ds_seq_gradients": [*[_ADDRESS] * 3, *[_NUMBER] * 3, _ADDRESS],
        "ds_seq_sums_of_rows": [*[_ADDRESS] * 2, *[_NUMBER] * 2, _ADDRESS],
    }
    try:
        kernels = ctypes.CDLL(str(path))
        if not _is_of_these_sources(kernels):
            warnings.warn(
                f"{path} is not used, as its sources have changed, and PyTorch's operators are "
                "slower; compile it again: pip install -e .",
                stacklevel=2,
            )
            return None
        for name, types in arguments.items():
            kernel = getattr(kernels, name)
            kernel.argtypes = types
            kernel.restype = _NUMBER if name.endswith(("step", "encode")) else None
    except OSError:
        return None
    return kernels


def _is_of_these_sources(kernels: ctypes.CDLL) -> bool:
    sources = digest()
    if sources is None:
        return True
    try:
        compiled = (ctypes.c_char * (len(sources) + 1)).in_dll(kernels, "ds_seq_sources").value
    except ValueError:  # of a version that did not have it
        return False
    return bool(compiled == sources.encode())


def _is_plain(x: Tensor) -> bool:
    """Return whether a kernel can read x: float32 on a CPU, rows without gaps."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.stride(-1) == 1


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor | None:
    """Return scaled dot-product attention (B, T, H Dh), or None where the kernel does not serve.

    A query reads only the keys that its mask leaves: in a beam search those on its own path.

    Args:
        query: (B, H, T, Dh).
        key: (B, H', S, Dh); H' divides H.
        value: (B, H', S, Dh).
        mask: (B, 1, T or 1, S), added to the scores, or None.
    """
    kernels = library()
    if kernels is None or torch.is_grad_enabled():
        return None
    num_sentences, num_heads, num_queries, width = query.shape
    num_keys = key.size(2)
    plain = all(map(_is_plain, (query, key, value)))
    if not plain or width % LANES or num_keys > _MOST_KEYS or not query.numel():
        return None
    mask_strides = (0, 0)
    if mask is not None:
        if not _is_plain(mask) or mask.shape[:2] != (num_sentences, 1):
            return None
        mask_strides = mask.stride(0), 0 if mask.size(2) == 1 else mask.stride(2)
    out = query.new_empty(num_sentences, num_queries, num_heads * width)
    of_query, of_key, of_value = query.stride(), key.stride(), value.stride()
    strides = of_query[0], of_query[2], of_query[1], *of_key[:3], *of_value[:3], *mask_strides
    sizes = num_sentences, num_queries, num_heads, num_heads // key.size(1), num_keys, width
    kernels.ds_seq_attend(
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        None if mask is None else mask.data_ptr(),
        out.data_ptr(),
        _Strides(*strides),
        _Sizes(*sizes),
        1.0 / math.sqrt(width),
    )
    return out


def best(values: Tensor, offsets: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the largest of `values + offsets` among the rows of each sentence, or None.

    Args:
        values: (N, V).
        offsets: offset of each row, (A, K).
        count: number of results C; at most K V.

    Returns:
        The sums, their rows (below K) and their columns, (A, C) each, the largest first, and of
        equal ones that of the first row and column first; NaN counts as -inf. None where the kernel
        does not serve.
    """
    kernels = library()
    offsets = offsets.contiguous()
    if kernels is None or not values.is_contiguous():
        return None
    if not (_is_plain(values) and _is_plain(offsets) and 0 < count <= _MOST_RESULTS):
        return None
    num_sentences, num_rows = offsets.shape
    sums = offsets.new_empty(num_sentences, count)
    rows = torch.empty(num_sentences, count, dtype=torch.int64)
    columns = torch.empty_like(rows)
    addresses = [x.data_ptr() for x in (values, offsets, sums, rows, columns)]
    kernels.ds_seq_best(*addresses, num_sentences, num_rows, values.size(1), count)
    return sums, rows, columns


def log_softmax(values: Tensor) -> Tensor | None:
    """Turn logits (N, V) into log-probabilities in place and return them.

    Returns None, and changes nothing, where the kernel does not serve. A row with NaN, or with no
    logit above -inf, is NaN afterwards.
    """
    kernels = library()
    if kernels is None or not (_is_plain(values) and values.is_contiguous()):
        return None
    kernels.ds_seq_log_softmax(values.data_ptr(), *values.shape)
    return values
