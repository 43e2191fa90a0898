"""What DeepSpeed itself makes of our dictionary, and our key tables against its models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import (
    DeepSpeedZeroOffloadOptimizerConfig,
    DeepSpeedZeroOffloadParamConfig,
)

from ds_seq.config.deepspeed import engine_config, load_deepspeed_json, zero_stage
from ds_seq.config.deepspeed_keys import OWNED_BELOW, PASSED, wanted_instead
from ds_seq.config.train import TrainConfig

JSON_FILES = sorted((Path(__file__).parents[3] / "configs" / "ds_config").glob("*.json"))


@pytest.mark.parametrize("file", JSON_FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize(
    ("precision", "clip_norm", "accumulate"), [("fp32", 0.0, 1), ("fp16", 0.7, 3), ("bf16", 2.0, 2)]
)
def test_deepspeed_understands_the_settings(
    file: Path, precision: str, clip_norm: float, accumulate: int
) -> None:
    train = TrainConfig.model_validate(
        {"precision": precision, "clip_norm": clip_norm, "accumulate": accumulate, "log_every": 9}
    )
    ds_json = load_deepspeed_json(file)
    understood = DeepSpeedConfig(engine_config(train, ds_json, moe=True))
    assert understood.gradient_clipping == clip_norm
    assert understood.gradient_accumulation_steps == accumulate
    assert understood.train_micro_batch_size_per_gpu == 1
    assert understood.steps_per_print == 9
    assert understood.float16_config.enabled == (precision == "fp16")
    assert understood.bfloat16_config.enabled == (precision == "bf16")
    assert understood.zero_optimization_stage == zero_stage(ds_json)
    assert understood.zero_allow_untested_optimizer
    assert not understood.zero_force_ds_cpu_optimizer
    for key, value in ds_json["fp16"].items():
        assert understood.float16_config.model_dump()[key] == value
    offload = ds_json["zero_optimization"].get("offload_optimizer")
    assert (understood.zero_config.offload_optimizer is not None) == (offload is not None)


@pytest.mark.parametrize(
    ("model", "known"),
    [
        (DeepSpeedZeroConfig, PASSED["zero_optimization"]),
        (DeepSpeedFP16Config, PASSED["fp16"]),
        (DeepSpeedFP16Config, OWNED_BELOW["fp16"]),
        (DeepSpeedBF16Config, PASSED["bf16"]),
        (DeepSpeedBF16Config, OWNED_BELOW["bf16"]),
        (DeepSpeedZeroOffloadParamConfig, PASSED["zero_optimization"]["offload_param"]),
        (DeepSpeedZeroOffloadOptimizerConfig, PASSED["zero_optimization"]["offload_optimizer"]),
    ],
)
def test_each_nested_key_of_ours_is_one_of_deepspeeds(model: Any, known: Any) -> None:
    fields = {field.alias or name for name, field in model.model_fields.items()}
    assert known.keys() <= fields


@pytest.mark.parametrize(
    "model",
    [DeepSpeedZeroConfig, DeepSpeedZeroOffloadParamConfig, DeepSpeedZeroOffloadOptimizerConfig],
)
def test_numbers_that_deepspeed_refuses_are_refused_before(model: Any) -> None:
    for name, field in model.model_fields.items():
        for bound in field.metadata:
            limits = [getattr(bound, kind, None) for kind in ("gt", "ge", "le")]
            for limit, step in zip(limits, (0, -1, 1), strict=True):
                if limit is not None:
                    assert wanted_instead(field.alias or name, limit + step, "number"), name
