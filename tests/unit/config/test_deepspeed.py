"""Who owns which key of the DeepSpeed dictionary."""

from __future__ import annotations

from typing import Any

import pytest

from ds_seq.config.deepspeed import (
    engine_config,
    engine_config_for,
    load_deepspeed_json,
    zero_stage,
)
from ds_seq.config.deepspeed_keys import FIXED, OWNED, OWNED_BELOW, PASSED, REFUSED
from ds_seq.config.train import TrainConfig
from ds_seq.errors import UserError
from tests.unit.config.fixture_types import MakeConfig, WriteFile

TRAIN = TrainConfig(deepspeed="zero.json", accumulate=3, clip_norm=0.5, log_every=7)


def complaints(ds_json: dict[str, Any], train: TrainConfig = TRAIN, moe: bool = False) -> list[str]:
    with pytest.raises(UserError) as caught:
        engine_config(train, ds_json, moe=moe)
    return str(caught.value).splitlines()


def test_the_experiment_writes_what_it_owns() -> None:
    engine = engine_config(TRAIN, {"zero_optimization": {"stage": 2}}, moe=False)
    assert engine["train_micro_batch_size_per_gpu"] == 1
    assert engine["gradient_accumulation_steps"] == 3
    assert engine["gradient_clipping"] == 0.5
    assert engine["steps_per_print"] == 7
    assert engine["zero_optimization"] == {"stage": 2}
    assert not engine["fp16"]["enabled"] and not engine["bf16"]["enabled"]
    for key, value in FIXED.items():
        assert engine[key] is value


def test_no_clipping_is_written_as_zero() -> None:
    assert engine_config(TrainConfig(), {}, moe=False)["gradient_clipping"] == 0.0


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_precision_is_switched_and_its_tuning_kept(precision: str) -> None:
    train = TrainConfig.model_validate({"precision": precision})
    tuning = {"initial_scale_power": 9, "min_loss_scale": 1}
    engine = engine_config(train, {"fp16": tuning}, moe=False)
    assert engine["fp16"] == {**tuning, "enabled": precision == "fp16"}
    ours = {"check_grad_overflow": False} if precision == "bf16" else {}
    assert engine["bf16"] == {"enabled": precision == "bf16", **ours}


@pytest.mark.parametrize("check", [True, False])
def test_checking_each_bf16_gradient_can_be_requested(check: bool) -> None:
    train = TrainConfig(precision="bf16")
    engine = engine_config(train, {"bf16": {"check_grad_overflow": check}}, moe=False)
    assert engine["bf16"] == {"enabled": True, "check_grad_overflow": check}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("world_size", [None, 1, 2])
def test_one_rank_overlaps_no_communication(stage: int, world_size: int | None) -> None:
    given = {"zero_optimization": {"stage": stage, "overlap_comm": True}}
    engine = engine_config(TrainConfig(), given, moe=False, world_size=world_size)
    expected = not (world_size == 1 and stage in (1, 2))
    assert engine["zero_optimization"]["overlap_comm"] is expected
    assert given["zero_optimization"]["overlap_comm"] is True


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_half_precision_adds_up_gradients_in_fp32(
    precision: str, stage: int, accumulate: int
) -> None:
    train = TrainConfig.model_validate({"precision": precision, "accumulate": accumulate})
    given = {"zero_optimization": {"stage": stage}}
    types = engine_config(train, given, moe=False).get("data_types")
    needs_it = precision != "fp32" and stage > 0 and accumulate > 1
    assert types == ({"grad_accum_dtype": "fp32"} if needs_it else None)
    if precision != "fp32":
        chosen = {"data_types": {"grad_accum_dtype": precision}}
        assert engine_config(train, given | chosen, moe=False)["data_types"] == chosen["data_types"]
    chosen = {"data_types": {"grad_accum_dtype": "auto"}}
    assert engine_config(train, given | chosen, moe=False).get("data_types") in (types, {})


@pytest.mark.parametrize(("stage", "sums"), [(1, None), (2, None), (3, "fp32")])
def test_offloaded_optimizers_add_up_as_they_can(stage: int, sums: str | None) -> None:
    zero = {"stage": stage, "offload_optimizer": {"device": "cpu"}}
    train = TrainConfig(precision="fp16", accumulate=2)
    given = {"zero_optimization": zero}
    types = engine_config(train, given, moe=False).get("data_types", {})
    assert types.get("grad_accum_dtype") == sums
    chosen = {**given, "data_types": {"grad_accum_dtype": "fp32"}}
    if sums is None:
        (line,) = complaints(chosen, train)
        assert f"stage {stage} does not recover from an overflow" in line
    else:
        engine_config(train, chosen, moe=False)


@pytest.mark.parametrize(
    ("precision", "stage", "chosen", "words"),
    [
        ("fp16", 2, "bf16", 'should be fp32 or fp16 with train.precision fp16, not "bf16"'),
        ("fp32", 2, "bf16", 'should be fp32 with train.precision fp32, not "bf16"'),
        ("bf16", 1, "float32", 'not "float32"'),
        ("bf16", 0, "fp32", "stage 0 adds up gradients in bf16 only; use stage 1, 2 or 3"),
    ],
)
def test_sums_of_gradients_that_deepspeed_cannot_make(
    precision: str, stage: int, chosen: str, words: str
) -> None:
    train = TrainConfig.model_validate({"precision": precision})
    types = {"data_types": {"grad_accum_dtype": chosen}, "zero_optimization": {"stage": stage}}
    (line,) = complaints(types, train)
    assert "data_types.grad_accum_dtype: " in line and words in line


@pytest.mark.parametrize("key", OWNED)
def test_an_owned_key_is_refused_unless_auto(key: str) -> None:
    (line,) = complaints({key: 1})
    assert line.startswith(f"zero.json: {key}: belongs in the experiment file: {OWNED[key]}")
    engine = engine_config(TRAIN, {key: "auto"}, moe=False)
    assert engine == engine_config(TRAIN, {}, moe=False)


@pytest.mark.parametrize(
    ("section", "key"), [(section, key) for section, keys in OWNED_BELOW.items() for key in keys]
)
def test_an_owned_nested_key_is_refused_unless_auto(section: str, key: str) -> None:
    (line,) = complaints({section: {key: True}})
    assert f"{section}.{key}: belongs in the experiment file: train.precision" in line
    assert engine_config(TRAIN, {section: {key: "auto"}}, moe=False) == engine_config(
        TRAIN, {}, moe=False
    )


def test_a_file_written_for_hugging_face_works_as_it_is() -> None:
    ds_json = {
        "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": "auto",
            "sub_group_size": 1e9,
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
        },
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "zero_allow_untested_optimizer": True,
        "wall_clock_breakdown": False,
    }
    engine = engine_config(TRAIN, ds_json, moe=False)
    assert "optimizer" not in engine and "scheduler" not in engine
    assert "reduce_bucket_size" not in engine["zero_optimization"]
    assert engine["gradient_accumulation_steps"] == 3
    ds_json["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-3}}
    assert "optimizer: belongs in" in complaints(ds_json)[0]


@pytest.mark.parametrize(
    ("ds_json", "words"),
    [
        ({"gradient_cliping": 1.0}, "did you mean 'gradient_clipping'"),
        ({"zero_optimisation": {}}, "did you mean 'zero_optimization'"),
        ({"zero_optimization": {"stag": 2}}, "zero_optimization.stag: unknown key (did you"),
        ({"fp16": {"enabld": True}}, "fp16.enabld: unknown key (did you mean 'enabled'"),
        ({"fp16": {"histeresis": 2}}, "did you mean 'hysteresis'"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}},
            "zero_optimization.offload_optimizer.devise: unknown key (did you mean 'device'",
        ),
        ({"lr": 1e-3}, "lr: belongs in the experiment file: optimizer.lr"),
        ({"fp16": {"precision": "fp16"}}, "belongs in the experiment file: train.precision"),
        ({"zero_optimization": 2}, "should be an object"),
        ({"zero_optimization": {"stage": "2"}}, "stage: should be a whole number"),
        ({"zero_optimization": {"stage": True}}, "stage: should be a whole number"),
        ({"zero_optimization": {"stage": 4}}, "should be 0, 1, 2 or 3, not"),
        ({"zero_optimization": {"stage": "auto"}}, "choose 0, 1, 2 or 3"),
        ({"zero_optimization": {"overlap_comm": 1}}, "should be true or false, not 1"),
        ({"wall_clock_breakdown": "yes"}, "should be true or false"),
        ({"zero_force_ds_cpu_optimizer": True}, "ds_seq needs false"),
        (
            {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer: needs at least stage 1",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "offload_param: needs at least stage 3",
        ),
    ],
)
def test_mistakes_are_refused(ds_json: dict[str, Any], words: str) -> None:
    (line,) = complaints(ds_json)
    assert words in line


@pytest.mark.parametrize("key", REFUSED)
def test_what_ds_seq_cannot_use_says_why(key: str) -> None:
    (line,) = complaints({key: {}})
    assert REFUSED[key] in line


def test_all_findings_at_once() -> None:
    assert len(complaints({"a": 1, "amp": {}, "optimizer": {}, "fp16": {"enabled": True}})) == 4


def test_no_key_stands_in_two_tables() -> None:
    tables = [set(OWNED), set(FIXED), set(REFUSED), set(PASSED)]
    assert sum(map(len, tables)) == len(set().union(*tables))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("expert_parallel", [1, 2])
def test_stages_for_experts(precision: str, stage: int, expert_parallel: int) -> None:
    train = TrainConfig.model_validate(
        {"precision": precision, "expert_parallel": expert_parallel, "deepspeed": "zero.json"}
    )
    ds_json = {"zero_optimization": {"stage": stage}}
    if stage == 0 and expert_parallel > 1 and precision != "fp32":
        (line,) = complaints(ds_json, train, moe=True)
        assert "use stage 1, 2 or 3" in line
    else:
        assert zero_stage(engine_config(train, ds_json, moe=True)) == stage


@pytest.mark.parametrize(
    ("stages", "key", "value", "spread_only"),
    [
        ((1, 2), "round_robin_gradients", True, False),
        ((1, 2), "contiguous_gradients", False, True),
        ((1, 2), "reduce_scatter", False, True),
        ((3,), "zero_hpz_partition_size", 2, True),
        ((3,), "stage3_module_granularity_threshold", 1000, False),
    ],
)
def test_what_deepspeed_does_wrong_is_refused_where_it_does(
    stages: tuple[int, ...], key: str, value: Any, spread_only: bool
) -> None:
    spread = TrainConfig(deepspeed="zero.json", expert_parallel=2)
    for stage in range(4):
        ds_json = {"zero_optimization": {"stage": stage, key: value}}
        harmless = {"zero_optimization": {"stage": stage, key: "auto"}}
        engine_config(spread, harmless, moe=True)
        for train in (spread, TRAIN):
            if stage in stages and not (spread_only and train is TRAIN):
                (line,) = complaints(ds_json, train, moe=True)
                assert line.startswith(f"zero.json: zero_optimization.{key}: ")
            else:
                engine_config(train, ds_json, moe=True)


@pytest.mark.parametrize("key", ["bf16_master_weights_and_grads", "bf16_optimizer_states"])
def test_half_precision_masters_need_an_optimizer_that_we_do_not_use(key: str) -> None:
    (line,) = complaints({"bf16": {key: True}})
    assert line.startswith(f"zero.json: bf16.{key}: works only with DeepSpeed's own CPU Adam")
    engine_config(TRAIN, {"bf16": {key: False}}, moe=False)


def test_gradients_are_divided_beforehand_in_stages_that_can() -> None:
    for stage in (0, 1):
        ds_json = {"zero_optimization": {"stage": stage}, "gradient_predivide_factor": 2.0}
        engine_config(TRAIN, ds_json, moe=False)
    ds_json = {"zero_optimization": {"stage": 2}, "gradient_predivide_factor": 2.0}
    assert complaints(ds_json) == [
        "zero.json: gradient_predivide_factor: works with stages 0 and 1, not 2. Remove it"
    ]


def test_a_world_that_does_not_fit_is_refused_with_the_rest() -> None:
    train = TrainConfig(expert_parallel=2)
    engine_config(train, {}, moe=True, world_size=4)
    with pytest.raises(UserError) as caught:
        engine_config(train, {"x": 1}, moe=True, world_size=3)
    unknown, world = str(caught.value).splitlines()
    assert "x: unknown key" in unknown
    assert world.startswith("train.expert_parallel: 2 does not divide the world size 3")


def test_adafactor_needs_stage_zero(make: MakeConfig, write: WriteFile) -> None:
    path = write("zero1.json", '{"zero_optimization": {"stage": 1}, "oops": 1}')
    config = make(optimizer={"name": "adafactor"}, train={"deepspeed": str(path)})
    with pytest.raises(UserError) as caught:
        engine_config_for(config)
    unknown, optimizer = str(caught.value).splitlines()
    assert "oops" in unknown
    assert "optimizer.name: adafactor" in optimizer
    path.write_text("{}")
    assert engine_config_for(config)["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize(
    ("precision", "optimizer", "stage"),
    [
        ("fp32", "adamw", 0),
        ("bf16", "adamw", 1),
        ("fp16", "adamw", 1),
        ("bf16", "adafactor", 0),
    ],
)
def test_without_a_json(make: MakeConfig, precision: str, optimizer: str, stage: int) -> None:
    """Plain data parallelism in fp32; in half precision, a stage with fp32 sums and few waits."""
    config = make(train={"precision": precision}, optimizer={"name": optimizer})
    assert zero_stage(engine_config_for(config)) == stage


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{\n"a": 1,\n}', "zero.json:3: not valid JSON"),
        ("[1]", "contains no JSON object"),
        ('{"a": 1, "a": 2}', "key 'a' is given twice"),
        ('{"a": {"b": 1, "b": 2}}', "key 'b' is given twice"),
    ],
)
def test_files_that_are_no_deepspeed_json(write: WriteFile, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_deepspeed_json(write("zero.json", text))


def test_a_missing_json_is_named(make: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"train\.deepspeed: nowhere\.json cannot be read"):
        engine_config_for(make(train={"deepspeed": "nowhere.json"}))
