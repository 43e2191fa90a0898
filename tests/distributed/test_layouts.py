"""One answer for every layout: world size, accumulation, expert parallelism and ZeRO stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed import spine
from tests.distributed.harness import run_distributed

CASES = [(world, spread, stage) for world, spread in ((1, 1), (2, 1), (2, 2)) for stage in range(4)]
CASES += [
    (4, 2, 1),
    (4, 2, 3),
    (4, 4, 0),
    (4, 4, 2),
]  # experts both spread and copied, and more ranks
Result = tuple[list[tuple[float, float, bool]], dict[str, Tensor]]


def _train(stage: int, expert_parallel: int, options: dict[str, Any]) -> Result:
    engine = spine.make_engine(stage, expert_parallel, **options)
    return spine.train(engine, range(3)), spine.all_weights(engine)


@pytest.fixture(scope="module")
def reference() -> dict[str, Result]:
    """One process, no ZeRO: without and with clipping."""
    return {
        name: run_distributed(_train, 1, 0, 1, options)[0]
        for name, options in {"free": {"optimizer": spine.SGD}, "clipped": _CLIPPED}.items()
    }


_CLIPPED: dict[str, Any] = {"optimizer": spine.SGD, "clip": 0.25}


@pytest.mark.parametrize(("world", "expert_parallel", "stage"), CASES)
def test_same_losses_norms_and_weights_in_every_layout(
    world: int, expert_parallel: int, stage: int, reference: dict[str, Result]
) -> None:
    steps, weights = run_distributed(_train, world, stage, expert_parallel, _CLIPPED)[0]
    expected_steps, expected = reference["clipped"]
    torch.testing.assert_close(
        torch.tensor(steps), torch.tensor(expected_steps), rtol=1e-4, atol=1e-5
    )
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_clipping_matters_in_the_test_above(reference: dict[str, Result]) -> None:
    (free, _), (clipped, _) = reference["free"], reference["clipped"]
    assert free[0][1] > 0.25 and free[-1][0] != pytest.approx(clipped[-1][0], abs=1e-4)
