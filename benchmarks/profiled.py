"""Time by class of operator and memory of activations, from torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.profiler import ProfilerActivity, profile

MATMUL, ATTENTION, OPTIMIZER = "matmul", "attention", "optimizer"
MOVEMENT, REST = "movement, sorting", "the rest"
_KINDS = {
    MATMUL: ("mm", "addmm", "bmm", "baddbmm", "linear", "grouped_mm", "_linear_pointwise"),
    ATTENTION: ("attention",),
    OPTIMIZER: ("_fused_adam", "_foreach"),
    MOVEMENT: (
        "arange",
        "argsort",
        "bincount",
        "cat",
        "clone",
        "contiguous",
        "copy",
        "cumsum",
        "fill",
        "gather",
        "index",
        "masked_select",
        "new_zeros",
        "nonzero",
        "one_hot",
        "scatter",
        "repeat_interleave",
        "slice_backward",
        "sort",
        "split",
        "stack",
        "take",
        "to_copy",
        "topk",
        "zero",
        "zeros",
    ),
}
KINDS = (MATMUL, ATTENTION, MOVEMENT, REST, OPTIMIZER)


def kind_of(operator: str) -> str:
    """Return the class of work of an operator such as `aten::index_select`."""
    name = operator.rpartition("::")[2]
    if "attention" in name:
        return ATTENTION
    if any(name.startswith(prefix) for prefix in _KINDS[OPTIMIZER]) or "Optimizer" in name:
        return OPTIMIZER
    plain = name.strip("_").removesuffix("_out")
    if plain in {word.strip("_") for word in _KINDS[MATMUL]}:
        return MATMUL
    if any(plain.startswith(word) for word in _KINDS[MOVEMENT]):
        return MOVEMENT
    return REST


def operator_seconds(call: Callable[[], object], repeats: int = 3) -> dict[str, float]:
    """Return seconds of a call by class of work, each operator without those it calls.

    Args:
        call: function to profile.
        repeats: number of calls; the fastest is used, as the one disturbed least.
    """
    return min((_profiled(call) for _ in range(repeats)), key=lambda found: sum(found.values()))


def _profiled(call: Callable[[], object]) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    seconds = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return seconds


class Allocation(NamedTuple):
    """A block of memory that is allocated, or freed if the size is negative."""

    address: int
    size: int


def peak_activation_bytes(call: Callable[[], object], parameters: Iterable[nn.Parameter]) -> int:
    """Return the peak memory in bytes of a forward and backward pass, beyond that held before.

    Every allocation of torch's CPU allocator counts, including temporaries inside operators. The
    final gradients of parameters do not count: they grow with the parameters by definition, and
    outlive the call.

    Args:
        call: forward and backward pass; before it no parameter has a gradient.
        parameters: parameters whose gradients are excluded.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    results: Any = profiler.profiler.kineto_results  # type: ignore[union-attr]
    events = [
        (event.start_time_ns, Allocation(event.extra_fields.ptr, event.extra_fields.alloc_size))
        for event in _walk(results.experimental_event_tree())
        if event.name == "[memory]"
    ]
    events.sort(key=lambda event: event[0])
    gradients = {p.grad.untyped_storage().data_ptr() for p in parameters if p.grad is not None}
    return peak_bytes([allocation for _, allocation in events], gradients)


def peak_bytes(allocations: Sequence[Allocation], kept: set[int]) -> int:
    """Return the largest total size of blocks held at the same time.

    Args:
        allocations: allocations in order of time; frees of blocks allocated earlier do not count.
        kept: addresses whose last block, if never freed, is excluded.
    """
    last = {a.address: i for i, a in enumerate(allocations) if a.address in kept}
    left_out = {i for i in last.values()}
    held: dict[int, int] = {}
    total = peak = 0
    for i, (address, size) in enumerate(allocations):
        if size < 0:
            total -= held.pop(address, 0)
        elif i not in left_out:
            held[address] = size
            total += size
            peak = max(peak, total)
    return peak


def _walk(events: Iterable[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _walk(event.children)
