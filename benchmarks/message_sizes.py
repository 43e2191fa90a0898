"""What an update sends in each layout, and weak scaling from one process to two.

    python benchmarks/message_sizes.py [--parts sizes scaling] [--rounds 3] [--record]

The sizes are those of real collectives of two gloo ranks (`messages.py`), as multiples of the
model's own: G, the gradients of the weights that all ranks hold, and X, the rows of the experts'
inputs (real tokens times `top_k`). Scaling runs one process and two in turn, each with as many
tokens per process and, with experts, as many experts per process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.common import add_common_arguments, command_line, finish, machine, table
from benchmarks.communication import CommunicationClock
from benchmarks.messages import EXPERTS, Measured, make_lab, measure, words_of
from ds_seq import train as train_command
from ds_seq.training.update import UpdateRunner
from tests.distributed.harness import run_distributed

_PARTS = ("sizes", "scaling")
_SPREAD = (*EXPERTS, "train.expert_parallel=2")
_BF16 = ("train.precision=bf16",)
_FREED = dict.fromkeys(
    (
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_param_persistence_threshold",
    ),
    0,
)
_SIZES: dict[str, tuple[int, tuple[str, ...], dict[str, int]]] = {
    "dense, fp32, ZeRO 0": (0, (), {}),
    "dense, fp32, ZeRO 1": (1, (), {}),
    "dense, fp32, ZeRO 2": (2, (), {}),
    "dense, fp32, ZeRO 3": (3, (), {}),
    "dense, fp32, ZeRO 3, weights freed": (3, (), _FREED),
    "dense, bf16, ZeRO 1": (1, _BF16, {}),
    "dense, bf16, ZeRO 3": (3, _BF16, {}),
    "dense, bf16, ZeRO 1, accumulate 2": (1, (*_BF16, "train.accumulate=2"), {}),
    "experts, fp32, ZeRO 0": (0, _SPREAD, {}),
    "experts, fp32, ZeRO 1": (1, _SPREAD, {}),
    "experts, fp32, ZeRO 3": (3, _SPREAD, {}),
    "experts, bf16, ZeRO 1": (1, (*_SPREAD, *_BF16), {}),
}
"""Layout -> stage of ZeRO, overrides, further keys of `zero_optimization`."""
_LARGE = (
    "model.d_model=256",
    "model.ffn_dim=1024",
    "model.num_heads=4",
    "train.max_tokens=2000",
    "train.max_updates=24",
)
_FROM = 8  # updates that are not counted
_SMALL = 200  # bytes: flags, counts and norms


def main(argv: Sequence[str]) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", default=list(_PARTS), choices=_PARTS)
    parser.add_argument("--rounds", type=int, default=3)
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    texts = [f"{machine()}; `{command_line()}`"]
    with tempfile.TemporaryDirectory() as name:
        experiment = make_lab(Path(name))
        if "sizes" in args.parts:
            texts.append(_sizes(experiment))
        if "scaling" in args.parts:
            texts.append(_scaling(experiment, 1 if args.quick else args.rounds))
    return finish("Messages of an update, and weak scaling", "\n\n".join(texts), [], args.record)


def _sizes(experiment: Path) -> str:
    rows = []
    for name, (stage, overrides, zero) in _SIZES.items():
        first, second = measure(experiment, stage, *overrides, zero=zero)
        of_group = [m for m in first.messages if m.group_size > 1]
        found = first._replace(messages=of_group)
        wide = 2 if "bf16" in name else 4
        gradients = wide * first.dense_parameters
        rows.append(
            [
                name,
                *(_times(found.total(kind, at_least=_SMALL), gradients) for kind in _KINDS),
                _exchanged((first, second), wide),
                str(sum(m.num_bytes >= _SMALL for m in of_group)),
                str(sum(m.num_bytes < _SMALL for m in of_group)),
            ]
        )
        print(rows[-1], flush=True)
    head = ("layout", *(f"{kind}, G" for kind in _KINDS), "all_to_all, X", "messages", "small ones")
    return table(head, rows)


_KINDS = ("all_reduce", "reduce_scatter_tensor", "all_gather_into_tensor")


def _times(size: int, unit: int) -> str:
    return f"{size / unit:.2f}" if size else "-"


def _exchanged(ranks: Sequence[Measured], wide: int) -> str:
    """Return the rows that were exchanged, per row that the experts of all layers got."""
    sent = sum(rank.total("all_to_all_single", at_least=_SMALL) for rank in ranks)
    tokens = sum(rank.source_tokens + rank.target_tokens for rank in ranks)
    return _times(sent, tokens * 2 * 32 * wide)  # top_k, width


class Pace(NamedTuple):
    """How fast a rank was.

    Attributes:
        per_second: source and target tokens per second.
        per_cpu_second: the same per second of processor time, all threads.
        exchanging: share of the time in exchanges between experts, waiting included.
        reducing: share of the time in other collectives.
    """

    per_second: float
    per_cpu_second: float
    exchanging: float
    reducing: float


def _scaling(experiment: Path, rounds: int) -> str:
    cases = {
        "dense, 1 process": (1, ()),
        "dense, 2 processes": (2, ()),
        "experts, 1 process with 4": (1, (*EXPERTS,)),
        "experts, 2 processes with 4 each": (
            2,
            (*EXPERTS, "model.moe.num_experts=8", "train.expert_parallel=2"),
        ),
    }
    found: dict[str, list[Pace]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (ranks, overrides) in cases.items():
            with words_of(experiment, 1, (*_LARGE, *overrides)) as words:
                paces = run_distributed(_pace, ranks, words, timeout=400)
            found[name].append(Pace(*map(statistics.mean, zip(*paces, strict=True))))
            print(name, found[name][-1], flush=True)
    rows = []
    for name, paces in found.items():
        alone = found[name.split(",")[0] + ", 1 process" + " with 4" * name.startswith("experts")]
        ratios = [
            [pace[k] / one[k] for pace, one in zip(paces, alone, strict=True)] for k in (0, 1)
        ]
        rows.append(
            [
                name,
                *(f"{statistics.median(ratio):.2f}" for ratio in ratios),
                *(f"{100 * statistics.median(p[k] for p in paces):.1f}%" for k in (2, 3)),
            ]
        )
    head = ("run", "tokens/s per process", "tokens/CPU s", "between experts", "other collectives")
    return table(head, rows) + "\n\nThe first two to those of one process; medians of the rounds."


def _pace(words: list[str]) -> Pace:
    """Train, and return the pace of this rank, without its first updates."""
    clock, tokens, marks = CommunicationClock(), [0], []
    run_update = UpdateRunner.__call__

    def call(runner: UpdateRunner, update: Any, number: int, *more: Any, **named: Any) -> Any:
        if number == _FROM:
            clock.read()
            marks.append((time.perf_counter(), time.process_time()))
        result = run_update(runner, update, number, *more, **named)
        if number >= _FROM:
            tokens[0] += sum(int(b.inputs.source_mask.sum()) + b.num_tokens for b in update.batches)
            marks[1:] = [(time.perf_counter(), time.process_time())]
        return result

    UpdateRunner.__call__ = call  # type: ignore[method-assign]
    assert train_command.main(words) == 0
    seconds, cpu = (last - first for first, last in zip(*marks, strict=True))
    exchanging, reducing = clock.read()
    return Pace(tokens[0] / seconds, tokens[0] / cpu, exchanging / seconds, reducing / seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
