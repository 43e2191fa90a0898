"""One answer for every layout: world size, accumulation, expert parallelism and ZeRO stage.

Every case trains the same model on the same unequal (in part empty) batches, and is compared with a
loop in plain torch, in one process: losses, global gradient norms, whole gradients and updated
weights of dense, gate and expert parameters. All cases of one world size share their processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from ds_seq.config.model import DecoderOnlyConfig, MoeConfig, RecurrentConfig
from tests.distributed import spine
from tests.distributed.harness import run_distributed

UPDATES = 2  # the second one ends with empty batches
EXACT = {"rtol": 1e-5, "atol": 1e-5}
CONFIGS = Path(__file__).parents[2] / "configs" / "ds_config"
LAYOUTS = ((1, 1), (2, 1), (2, 2), (4, 2), (4, 4))
FACTORS = {"experts": 0.5, "routers": 3.0, "embeddings": 0.2, "decoder": 2.0}
CLIPPED: dict[str, Any] = {"optimizer": spine.SGD, "clip": 2.0}  # the norms are above 2.5


def _with(**moe: Any) -> dict[str, Any]:
    settings = {"num_experts": 4, "top_k": 2, "capacity_factor": None, "every": 1, **moe}
    return {"model": spine.small_model(moe=MoeConfig(**settings))}  # type: ignore[arg-type]


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sparse_clip": {"sparse_clip": True},
    "recompute": {"model": spine.model_config(activation_checkpointing=True)},
    "one_expert": _with(top_k=1),
    "capacity": _with(capacity_factor=0.75, min_capacity=0, drop="probability"),
    "cosine": _with(router="cosine"),
    "sigmoid": _with(router="sigmoid", bias_rate=0.1),
    "expert_choice": _with(router="expert_choice", placement="encoder"),
    "language": _with(router="language"),
    "hash": _with(router="hash"),
    "residual": _with(residual=True),
    "shared": _with(shared_experts=1),
    "conditional": _with(conditional_budget=0.5),
    "rates": {**_with(), "optimizer": spine.SGD.model_copy(update={"lr_factors": FACTORS})},
    "pyramid": {**_with(num_experts=[4, 8]), "sparse_clip": True},
    "axes": {
        "model": spine.small_model(
            norm="rms",
            norm_position="subln",
            query_key_norm=True,
            num_kv_heads=1,
            positions="buckets",
            decoder_mixer="retention",
            attention_window=4,
            activation="geglu",
            embedding_dim=8,
            embedding_norm=True,
            adapters={"ids": ["a"], "active": "a", "gate": True},
            linear="bitnet",
            multiway={"markers": {"a": 0, "b": 1}},
            moe=MoeConfig(
                num_experts=4, top_k=2, capacity_factor=None, placement="decoder", every=1
            ),
        )
    },
    "other_axes": {
        "model": spine.small_model(
            norm_position="deepnorm",
            positions="xpos",
            encoder_mixer={"name": "retention", "chunk_size": 3},
            decoder_mixer={"name": "dilated", "segment_lengths": [3, 6], "dilations": [1, 2]},
            activation="relu_squared",
            share_embeddings="none",
            embedding_dim=8,
            lora={"rank": 2, "modules": ["query", "value", "down", "experts"]},
        )
    },
    "recurrent": {
        "model": RecurrentConfig(
            name="recurrent",
            encoder_embedding_dim=12,
            decoder_embedding_dim=12,
            encoder_hidden_dim=8,
            decoder_hidden_dim=12,
            output_dim=12,
            decoder_layers=2,
            dropout=0.0,
        )
    },
    "language_model": {
        "model": DecoderOnlyConfig.model_validate(
            {
                **spine.WIDTHS,
                "decoder_layers": 2,
                "name": "decoder_only",
                "adaptive": {"cutoffs": [7, 12], "factor": 2, "tie_projections": True},
                "moe": {"num_experts": 4, "top_k": 2, "capacity_factor": None, "every": 1},
            }
        )
    },
    "convolutions": {
        "model": spine.small_model(
            encoder_mixer={"name": "dynamic_convolution", "kernel_sizes": [3]},
            decoder_mixer={"name": "lightweight_convolution", "kernel_sizes": [4]},
        )
    },
}


class Case(NamedTuple):
    """A layout and what it trains."""

    world: int
    expert_parallel: int
    stage: int
    variant: str

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an update over all ranks; in the plain cases each rank accumulates."""
        return 8 if self.world == 4 and self.variant == "plain" else 4

    def __str__(self) -> str:
        layout = f"world{self.world}-ep{self.expert_parallel}-zero{self.stage}"
        return layout if self.variant == "plain" else f"{self.variant}-{layout}"


PLAIN = [Case(*layout, stage, "plain") for layout in LAYOUTS for stage in range(4)]
# with four ranks every stage is in one of the layouts; the others are slow
CASES = [case for case in PLAIN if case.world < 4 or case.stage % 2 == (case.expert_parallel == 4)]
OF_VARIANTS = ((2, 2, 1), (2, 2, 3), (4, 2, 2))
_KINDS = [variant for variant in VARIANTS if variant not in ("plain", "recurrent")]
# each variant in one of the first two, and mixtures of axes in all; the other pairs are slow
CASES += [Case(*OF_VARIANTS[number % 2], kind) for number, kind in enumerate(_KINDS)]
CASES += [Case(*layout, kind) for kind in _KINDS if "axes" in kind for layout in OF_VARIANTS]
CASES += [Case(2, 1, 3, "recurrent")]
SLOW = [*PLAIN, *(Case(*layout, kind) for kind in _KINDS for layout in OF_VARIANTS)]
SLOW += [Case(2, 1, stage, "recurrent") for stage in range(3)]
SHIPPED = {path.stem: json.loads(path.read_text()) for path in sorted(CONFIGS.glob("*.json"))}
for stem, content in SHIPPED.items():
    VARIANTS[f"shipped_{stem}"] = {
        "zero": content["zero_optimization"],
        "model": spine.small_model(),
    }
CASES += [
    Case(2, 2, content["zero_optimization"]["stage"], f"shipped_{stem}")
    for stem, content in SHIPPED.items()
]
CASES += [Case(1, 1, 2, "sparse_clip"), Case(2, 1, 0, "sparse_clip"), Case(2, 2, 0, "sparse_clip")]
CASES = list(dict.fromkeys(CASES))
SLOW = [case for case in SLOW if case not in CASES]


def _run_all(cases: list[Case]) -> dict[Case, spine.Result]:
    results = {}
    for case in cases:
        options = {
            **CLIPPED,
            "micro_batches": case.micro_batches,
            **VARIANTS[case.variant],
        }
        try:
            results[case] = spine.run(case.stage, case.expert_parallel, UPDATES, options)
        except Exception as error:
            raise AssertionError(f"in case {case}") from error
    return results


Expected = dict[tuple[str, int], spine.Result]


def _emulate_all() -> Expected:
    results = {}
    for name, count in sorted({(case.variant, case.micro_batches) for case in CASES + SLOW}):
        variant = {**CLIPPED, "micro_batches": count, **VARIANTS[name]}
        options = {key: value for key, value in variant.items() if key != "zero"}
        if name == "recompute":
            options["model"] = spine.model_config()  # the answer is that of keeping activations
        results[name, count] = spine.emulate(UPDATES, **options)
    return results


@pytest.fixture(scope="module")
def expected() -> Expected:
    """The single-process emulation, by variant and number of micro-batches."""
    found: Expected = run_distributed(_emulate_all, 1)[0]
    return found


@pytest.fixture(scope="module")
def results_of() -> Callable[[int, bool], list[dict[Case, spine.Result]]]:
    """World size, and whether slow -> results by rank and case; run at the first request."""

    @cache
    def run(world: int, is_slow: bool) -> list[dict[Case, spine.Result]]:
        cases = [case for case in (SLOW if is_slow else CASES) if case.world == world]
        return run_distributed(_run_all, world, cases, timeout=150.0)

    return run


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)], ids=str
)
def test_every_layout_equals_one_process(
    case: Case,
    results_of: Callable[[int, bool], list[dict[Case, spine.Result]]],
    expected: Expected,
) -> None:
    want = expected[case.variant, case.micro_batches]
    for rank, results in enumerate(results_of(case.world, case in SLOW)):
        found, where = results[case], f"rank {rank}: "
        torch.testing.assert_close(torch.tensor(found.steps), torch.tensor(want.steps), **EXACT)
        assert found.gradients.keys() == want.gradients.keys()
        for name, value in want.gradients.items():
            torch.testing.assert_close(
                found.gradients[name], value, **EXACT, msg=f"{where}gradient of {name}"
            )
        for name, value in want.weights.items():
            torch.testing.assert_close(found.weights[name], value, **EXACT, msg=where + name)


def _emulate_without() -> dict[str, spine.Result]:
    return {
        "clipping": spine.emulate(UPDATES, **{**CLIPPED, "clip": 0.0}),
        "router_losses": spine.emulate(
            UPDATES, **CLIPPED, loss_weights=dict.fromkeys(spine.LOSS_WEIGHTS, 0.0)
        ),
    }


def test_the_comparison_above_can_fail(expected: Expected) -> None:
    """What the layouts share has an effect: clipping, weighing experts, gate losses, experts."""
    without = run_distributed(_emulate_without, 1)[0]
    plain = expected["plain", spine.FEW]
    for other in (*without.values(), expected["sparse_clip", spine.FEW]):
        worst = max((other.weights[n] - value).abs().max() for n, value in plain.weights.items())
        assert worst > 1e-3
    assert all(norm > CLIPPED["clip"] for _, norm, _ in plain.steps)
    gate = "encoder.layers.1.feed_forward.gate.weight"
    assert plain.gradients[gate].abs().max() > 1e-3
    for name, value in plain.gradients.items():
        if ".experts.w1" in name:
            assert sum(expert.abs().max() > 1e-3 for expert in value) > 1, name
