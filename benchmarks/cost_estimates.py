"""The costs that `ds-seq check` prints, next to those of real runs of two gloo ranks.

    python benchmarks/cost_estimates.py [--only bf16]

Memory is that of all tensors of the first rank, at most within an update; bytes are those of
collectives, as mean of both ranks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tests.distributed.harness import run_distributed
from tests.distributed.test_costs import CASES, Case, estimated, mean, measure_all


def main(argv: Sequence[str]) -> int:
    """Print a line for each case, and return 1 if a peak is more than 10% off."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="word in the names of the cases")
    only = parser.parse_args(argv).only
    print("| case | peak, MB | estimate / measured | bytes of collectives, estimate / measured |")
    print("|---|--:|--:|---|")
    worst = 0.0
    for case in CASES:
        if only not in _name(case):
            continue
        measured = mean(*(rank[0] for rank in run_distributed(measure_all, 2, [case], timeout=300)))
        peak, sizes = estimated(case)
        ratios = ", ".join(
            f"{kind} {sizes[kind] / size:.3f}" for kind, size in measured.sizes.items() if size
        )
        ratio = peak / measured.peak
        worst = max(worst, abs(ratio - 1.0))
        print(f"| {_name(case)} | {measured.peak / 1e6:.1f} | {ratio:.3f} | {ratios} |", flush=True)
    return int(worst > 0.1)


def _name(case: Case) -> str:
    kind = case.fields.get("name", "experts" if "moe" in case.fields else "dense")
    parts = [str(kind), case.precision, f"ZeRO {case.stage}"]
    parts += [f"{name} off" for name, value in case.fields.items() if value is False]
    parts += [f"expert_parallel {case.expert_parallel}"] if case.expert_parallel > 1 else []
    parts += [f"accumulate {case.accumulate}"] if case.accumulate > 1 else []
    parts += ["recomputed"] if case.fields.get("activation_checkpointing") else []
    parts += ["recurrent, grouped, swiglu"] if "encoder_repeats" in case.fields else []
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
