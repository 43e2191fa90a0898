"""The costs of a run as lines for people, and as values for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ds_seq.config.cost.estimate import Estimate, LayoutCosts

_GIB, _MIB = 2**30, 2**20
_PER_BATCH = 2  # stage from which gradients are exchanged after each batch
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


def cost_lines(found: Estimate) -> list[str]:
    """Return the report: memory, arithmetic, exchanges, and with several ranks other layouts."""
    lines = ["# memory of a GPU, estimated", *_memory_lines(found), ""]
    lines += ["# floating point operations", *_flops_lines(found), ""]
    if found.collectives:
        lines += ["# collectives of a rank in an update", *_collective_lines(found), ""]
    lines += ["# generation", *_generation_lines(found), ""]
    if found.layout.ranks > 1 or found.limit is not None:
        lines += [f"# layouts of {found.layout.ranks} process(es)", *_layout_lines(found), ""]
    return lines


def cost_notes(found: Estimate) -> Iterator[str]:
    """Yield what does not fit into a GPU and what to change, and what wastes its memory."""
    held, limit, train = found.memory.states, found.limit, found.config.train
    if train.freeze or train.trainable:
        yield "train.trainable, freeze: the costs above are those of training all weights"
    if held.buckets > _GIB / 2 and held.buckets > 2 * held.weights:
        yield (
            f"zero_optimization.reduce_bucket_size: its {found.buffers.bucket:,} numbers take "
            f"{held.buckets / _GIB:.2f} GiB, more than all weights; lower it in the DeepSpeed JSON"
        )
    if limit is None:
        return
    if found.memory.peak <= limit:
        yield from _traffic_notes(found)
        return
    ways, recomputed, is_set = [], found.recomputed, found.model.activation_checkpointing
    largest = found.largest_batch()
    if largest:
        ways.append(f"train.max_tokens {largest:,}")
    if recomputed is not None and not is_set and recomputed.peak <= limit:
        ways.append("model.activation_checkpointing true")
    fitting = [each for each in found.layouts() if each.peak <= limit]
    if fitting:
        best = min(fitting, key=lambda each: each.sent)
        way = f"ZeRO stage {best.layout.stage}"
        if best.layout.expert_parallel != found.layout.expert_parallel:
            way += f" with train.expert_parallel {best.layout.expert_parallel}"
        ways.append(way)
    yield (
        f"--gpu-memory {limit / _GIB:g}: an update needs {found.memory.peak / _GIB:.1f} GiB; "
        + (" or ".join(ways) + " would fit" if ways else "a smaller model or more GPUs would fit")
    )


def _traffic_notes(found: Estimate) -> Iterator[str]:
    """Yield whether stage 1 would do, which does not exchange the gradients of every batch."""
    batches, layout = found.config.train.accumulate, found.layout
    if layout.stage < _PER_BATCH or batches == 1 or layout.ranks == 1 or found.buffers.offloads:
        return
    now, other = found.of_layout(layout), found.of_layout(layout._replace(stage=1))
    if found.limit is not None and other.peak <= found.limit and other.sent < 0.8 * now.sent:
        yield (
            f"zero_optimization.stage: {layout.stage} exchanges gradients after each of the "
            f"{batches} batches of an update; stage 1 does so once: {other.sent / 1e6:,.0f} MB "
            f"instead of {now.sent / 1e6:,.0f} per update, and fits too"
        )


def cost_values(found: Estimate) -> dict[str, Any]:
    """Return the same as values: bytes, operations, numbers of parameters."""
    size, memory, held = found.size, found.memory, found.memory.states
    forward, training = found.flops
    search, recomputed = found.search, found.recomputed
    return {
        "layout": found.layout._asdict(),
        "batch": found.batch._asdict(),
        "parameters": {"total": size.total, "active": size.active, "experts": size.experts},
        "memory": {
            "weights": held.weights,
            "gathered_weights": held.gathered,
            "gradients": held.gradients,
            "optimizer": held.optimizer,
            "buckets": held.buckets,
            "activations": memory.activations,
            "activations_recomputed": None if recomputed is None else recomputed.activations,
            "logits": memory.logits,
            "peak": memory.peak,
            "peak_recomputed": None if recomputed is None else recomputed.peak,
        },
        "flops": {
            "forward": forward._asdict(),
            "training": training._asdict(),
            "batch": found.flops_of(training),
            "update_of_rank": found.flops_of(training) * found.config.train.accumulate,
        },
        "collectives": [{**each._asdict(), "sent": each.sent} for each in found.collectives],
        "generation": {
            "per_target_token": search.target,
            "per_source_token": search.source,
            "per_hypothesis": search.state,
        },
        "layouts": [_layout_values(each) for each in found.layouts()],
    }


def _layout_values(each: LayoutCosts) -> dict[str, Any]:
    values = each._asdict()
    layout = values.pop("layout")
    return {**layout._asdict(), **values}


def _memory_lines(found: Estimate) -> Iterator[str]:
    memory, held, layout = found.memory, found.memory.states, found.layout
    where = f"ZeRO stage {layout.stage}, {layout.ranks} process(es)"
    yield _gib("weights", held.weights, f"{where}, {found.config.train.precision}")
    if held.gathered:
        yield _gib("gathered", held.gathered, "weights that stage 3 gathers for a batch")
    yield _gib("optimizer", held.optimizer, "with an fp32 copy of the weights")
    yield _gib("gradients", held.gradients, "at the end of the backward pass")
    if held.buckets:
        yield _gib("buckets", held.buckets, "for their exchange: zero_optimization's bucket size")
    other = found.recomputed
    if other is None or found.model.activation_checkpointing:
        recomputed = ""
    else:
        recomputed = f"; {other.activations / _GIB:.2f} with model.activation_checkpointing"
    yield _gib(
        "activations",
        memory.activations,
        f"{found.batch.sentences:,} sentences of {found.batch.length} tokens on both sides"
        f"{recomputed}",
    )
    yield _gib("logits", memory.logits, "scores of the vocabulary, and their gradients")
    line = "the most at a time; not all of the above are there at once"
    if found.limit is not None:
        line = f"of {found.limit / _GIB:g}; the largest train.max_tokens: {found.largest_batch():,}"
    yield _gib("peak", memory.peak, line)


def _flops_lines(found: Estimate) -> Iterator[str]:
    forward, training = found.flops
    length = found.batch.length
    tokens = found.batch.tokens
    yield f"forward      {_short(forward.per_source):>10}   per source token, and per target token"
    yield f"             {_short(forward.per_target):>10}   (attention to other tokens not counted)"
    each = found.flops_of(forward) / tokens
    yield f"             {_short(each):>10}   per pair of tokens in sentences of {length}"
    each = found.flops_of(training) / tokens
    yield f"training     {_short(each):>10}   per pair of tokens, backward included"
    update = found.flops_of(training) * found.config.train.accumulate
    yield f"             {_short(update):>10}   per update of a process"


def _collective_lines(found: Estimate) -> Iterator[str]:
    yield f"{'':<16}{'MB':>12}{'calls':>8}{'each MB':>10}{'ranks':>7}{'sent MB':>12}"
    for each in found.collectives:
        calls = f"{each.calls:,.0f}" if each.calls else "-"
        one = f"{each.size / each.calls / 1e6:,.3f}" if each.calls else "-"
        yield (
            f"{each.name:<16}{each.size / 1e6:>12,.3f}{calls:>8}{one:>10}{each.group:>7}"
            f"{each.sent / 1e6:>12,.3f}   {each.what}"
        )


def _generation_lines(found: Estimate) -> Iterator[str]:
    target, source, state_bytes = found.search
    beam, length = found.config.generation.beam, found.batch.length
    whole = length * (beam * target + source) + beam * state_bytes
    state = f"{state_bytes / 1024:,.1f} KiB per hypothesis, " if state_bytes else ""
    yield (
        f"cache        {whole / _MIB:>10,.2f} MiB per sentence of {length} tokens and beam {beam}: "
        f"{state}{target / 1024:,.1f} KiB per token and hypothesis, {source / 1024:,.1f} KiB per "
        "source token"
    )


def _layout_lines(found: Estimate) -> Iterator[str]:
    has_limit = found.limit is not None
    yield (
        f"{'ZeRO':>4}{'expert_parallel':>17}{'states GiB':>12}{'peak GiB':>10}{'sent MB':>12}"
        + (f"{'largest max_tokens':>20}" if has_limit else "")
    )
    for each in found.layouts():
        yield _layout_line(found, each)


def _layout_line(found: Estimate, each: LayoutCosts) -> str:
    line = (
        f"{each.layout.stage:>4}{each.layout.expert_parallel:>17}{each.states / _GIB:>12.2f}"
        f"{each.peak / _GIB:>10.2f}{each.sent / 1e6:>12,.1f}"
    )
    if each.largest is not None:
        line += f"{each.largest:>20,}" if each.largest else f"{'does not fit':>20}"
    return line + ("   this experiment" if each.layout == found.layout else "")


def _gib(name: str, size: float, remark: str) -> str:
    return f"{name:<12}{size / _GIB:>9.2f} GiB   {remark}"


def _short(number: float) -> str:
    for unit, letter in _UNITS:
        if number >= unit:
            return f"{number / unit:.2f} {letter}"
    return f"{number:.0f}"
