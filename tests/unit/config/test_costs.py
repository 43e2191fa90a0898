"""What a run takes, from its config: see also tests/distributed/test_costs.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ds_seq.config.cost.estimate import Estimate, estimate
from ds_seq.config.cost.report import cost_lines, cost_notes, cost_values
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.flops import forward_flops

GIB = 2**30


def made(ranks: int, stage: int, model: Any = "big", **train: Any) -> Estimate:
    """Costs of a model, a preset or a section, without padding for buckets."""
    section = {"preset": model} if isinstance(model, str) else model
    config = ExperimentConfig.model_validate(
        {
            "name": "x",
            "data": {
                "source_lang": "en",
                "target_lang": "de",
                "dir": "d",
                "vocab": {"size": 1000},
            },
            "validation": {"metrics": [], "best": "loss"},
            "model": section,
            "train": train,
        }
    )
    zero = {"stage": stage, "reduce_bucket_size": 1000}
    found = estimate(config, {"zero_optimization": zero}, ranks, 32, gpu_memory=16)
    assert found is not None
    return found


def test_bytes_per_parameter_of_the_stages() -> None:
    """With Adam; ZeRO divides them in its order (Rajbhandari et al.), and has fp32 copies."""
    for (stage, ranks, precision), expected in {
        (0, 4, "fp32"): (4, 8, 4),
        (1, 4, "fp32"): (4, 12 / 4, 4),
        (2, 4, "fp32"): (4, 12 / 4, 4 / 4),
        (3, 4, "fp32"): (4 / 4, 12 / 4, 4 / 4),
        (0, 4, "bf16"): (2, 12, 2),
        (1, 4, "bf16"): (2, 12 / 4, 2),
        (3, 8, "bf16"): (2 / 8, 12 / 8, 2 / 8),
    }.items():
        found = made(ranks, stage, precision=precision)
        held, total = found.memory.states, found.size.total
        each = (held.weights / total, held.optimizer / total, held.gradients / total)
        assert each == pytest.approx(expected, abs=0.02), (stage, precision)


def test_experts_are_divided_among_the_groups_that_have_copies() -> None:
    model = {"preset": "ds_moe_big", "moe": {"num_experts": 64}}
    whole, spread = (made(8, 1, model, expert_parallel=size, precision="bf16") for size in (1, 4))
    experts, dense = whole.size.experts, whole.size.total - whole.size.experts
    held = spread.memory.states
    assert held.weights == pytest.approx(2 * (dense + experts / 4))
    assert held.optimizer == pytest.approx(12 * (dense / 8 + experts / 4 / 2))
    assert whole.memory.states.optimizer == pytest.approx(12 * (dense + experts) / 8)


def test_the_largest_batch_fits_and_the_next_does_not() -> None:
    for stage in (0, 3):
        found = made(8, stage, precision="bf16")
        tokens = found.largest_batch()
        assert tokens
        same, more = (
            made(8, stage, precision="bf16", max_tokens=size) for size in (tokens, tokens + 32)
        )
        assert same.memory.peak <= 16 * GIB < more.memory.peak
        recomputing = {"preset": "big", "activation_checkpointing": True}
        other = made(8, stage, recomputing, precision="bf16").largest_batch()
        assert other is not None and other > 2 * tokens


def test_layouts_are_those_that_divide_ranks_and_experts() -> None:
    model = {"preset": "ds_moe_base", "moe": {"num_experts": [4, 8, 12, 4, 8, 12]}}
    layouts = [each.layout for each in made(8, 1, model, precision="bf16").layouts()]
    assert {each.expert_parallel for each in layouts} == {1, 2, 4}
    # DeepSpeed cannot run stage 0 with experts on several ranks in half precision
    assert {each.expert_parallel for each in layouts if each.stage == 0} == {1}


def test_what_crosses_ranks() -> None:
    dense = made(8, 1, precision="bf16")
    kinds = [each.name for each in dense.collectives]
    assert kinds == ["all_reduce", "all_gather"]
    assert dense.collectives[0].size == 2 * dense.size.total
    assert dense.collectives[0].sent == 2 * dense.collectives[0].size * 7 / 8
    # stage 2 exchanges the gradients of each batch, stage 1 those of an update
    once, each = (
        sum(part.size for part in made(8, stage, accumulate=4).collectives) for stage in (1, 2)
    )
    assert each == once + 3 * 4 * dense.size.total
    assert made(1, 1).collectives == []


def test_weights_that_stage_3_lets_go_are_gathered_again() -> None:
    kept = made(8, 3)
    freed = replace(kept, buffers=replace(kept.buffers, live=0, persistent=0))
    (gathered,) = [each.size for each in freed.collectives if each.name == "all_gather"]
    assert gathered == 2 * 4 * kept.size.total
    assert freed.memory.states.gathered < 0.1 * kept.memory.states.gathered


def test_exchanges_of_experts() -> None:
    moe = {"num_experts": 8, "top_k": 2, "capacity_factor": None}
    model = {"preset": "tiny", "moe": moe, "encoder_repeats": 3}
    for recompute, times in ((False, 4), (True, 6)):
        section = {**model, "activation_checkpointing": recompute}
        found = made(4, 1, section, expert_parallel=4, accumulate=2)
        tokens = [each for each in found.collectives if each.what.startswith("tokens")]
        # one layer with experts per stack; that of the encoder is called three times
        assert [each.calls for each in tokens] == [2 * 3 * times, 2 * times]
        assert {each.size / each.calls for each in tokens} == {4096 * 2 * 64 * 4}


def test_recurrent_stacking_costs_arithmetic_and_no_weights() -> None:
    once, often = made(1, 0, "huge"), made(1, 0, "huge_RS")
    flops = [forward_flops(each.model, 1000) for each in (once, often)]
    assert flops[0] == flops[1]
    assert often.memory.activations == once.memory.activations
    assert often.memory.states.weights < 0.2 * once.memory.states.weights


def test_a_cache_has_the_keys_of_all_calls() -> None:
    grouped = made(1, 0, {"preset": "base", "num_kv_heads": 2, "decoder_repeats": 2})
    target, source, _ = grouped.search
    assert target == source == 2 * 128 * 12 * 4


@pytest.mark.parametrize("stage", [1, 3])
def test_a_frozen_language_model_has_weights_alone(stage: int) -> None:
    section = {"name": "decoder_only", "d_model": 64, "num_heads": 2, "max_positions": 2048}
    sizes = {"d_model": 32, "num_heads": 2, "ffn_dim": 64}
    plain = made(2, stage, sizes).memory
    found = {}
    for weights in ("frozen", "trained"):
        read = {"path": "lm", "model": section, "weights": weights}
        found[weights] = made(2, stage, {**sizes, "encoder_input": read}).memory
    frozen, trained = found["frozen"], found["trained"]
    near = 1e-3 if stage == 1 else 0.2  # of a trained one, small weights stay whole
    assert frozen.states.weights == pytest.approx(trained.states.weights, rel=near)
    projection = 64 * 32
    for kind, width in (("optimizer", 12), ("gradients", 4)):
        own, both = (getattr(each.states, kind) for each in (frozen, trained))
        before = getattr(plain.states, kind)
        assert own - before <= width * projection and both > 2 * own, kind
    assert frozen.activations == pytest.approx(plain.activations)
    assert plain.activations < trained.activations
    assert plain.peak < frozen.peak < trained.peak


def test_kinds_without_keys_keep_states_in_a_search() -> None:
    """fairseq's LSTM: two states of the layer and what is fed; keys and values of the source."""
    lstm = made(1, 0, {"name": "recurrent", "preset": "lstm"})
    assert lstm.search == (0.0, 4.0 * 2 * 512, 4.0 * 3 * 512)
    assert lstm.recomputed is None and lstm.size.total > lstm.largest_batch() > 0  # type: ignore[operator]
    layers = {"encoder_convolutions": [[8, 3]], "decoder_convolutions": [[8, 3], [16, 5]]}
    gated = made(1, 0, {"name": "convolutional", "embedding_dim": 32, **layers})
    assert gated.search == (0.0, 4.0 * 2 * 32, 4.0 * (3 * 8 + 5 * 8))
    lines = cost_lines(gated)
    assert any(line.startswith("activations") for line in lines)
    assert not any("activation_checkpointing" in line for line in [*lines, *cost_notes(gated)])
    assert cost_values(gated)["memory"]["peak_recomputed"] is None
