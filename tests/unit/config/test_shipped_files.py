"""Every file below configs/ loads, and says what its recipe says."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_seq.config.deepspeed import engine_config_for, zero_stage
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import load_experiment
from ds_seq.config.optim import AdamConfig, InverseSqrtConfig

CONFIGS = Path(__file__).parents[3] / "configs"
MARIAN = CONFIGS.parent / "tests" / "data" / "huggingface" / "marian"
EXPERIMENTS = sorted((CONFIGS / "experiments").glob("*.yaml"))
DS_JSONS = sorted((CONFIGS / "ds_config").glob("*.json"))


def load(name: str) -> ExperimentConfig:
    return load_experiment(CONFIGS / "experiments" / f"{name}.yaml")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_load_from_any_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = [f"model.path={MARIAN}"] if path.stem == "finetune_huggingface" else []
    config = load_experiment(path, here)
    assert config.name == path.stem
    engine_config_for(config, world_size=config.train.expert_parallel)


@pytest.mark.parametrize("path", DS_JSONS, ids=lambda path: path.stem)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_each_json_goes_with_the_tiny_model(path: Path, precision: str) -> None:
    config = load_experiment(
        CONFIGS / "experiments" / "tiny_dense.yaml",
        [f"train.deepspeed={path}", f"train.precision={precision}"],
    )
    engine = engine_config_for(config)
    assert zero_stage(engine) == int(path.stem.removeprefix("zero")[0])
    tuning = {"initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale"}
    assert tuning <= engine["fp16"].keys()


def test_the_moe_recipe_is_the_published_one() -> None:
    config = load("wmt16_en_de_moe")
    moe, optimizer, scheduler = config.model.moe, config.optimizer, config.scheduler
    assert moe is not None
    assert isinstance(optimizer, AdamConfig) and isinstance(scheduler, InverseSqrtConfig)
    assert (moe.num_experts, moe.top_k, moe.every, moe.placement) == (8, 1, 2, "both")
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay) == (5e-4, (0.9, 0.98), 1e-4)
    assert scheduler.warmup_updates == 4000
    assert (config.train.max_tokens, config.train.accumulate) == (8192, 16)
    # published in fp16; in bf16, a GPU computes all experts of a layer in one kernel
    assert (config.train.precision, config.train.clip_norm) == ("bf16", 0.0)
    assert (config.model.dropout, config.data.vocab.size) == (0.3, 32000)
    assert (config.generation.beam, config.generation.length_penalty) == (4, 0.6)
    assert config.criterion.name == "model_and_base"


@pytest.mark.parametrize(
    ("dense", "moe"), [("tiny_dense", "tiny_moe"), ("wmt16_en_de_base", "wmt16_en_de_moe")]
)
def test_a_token_meets_as_much_in_the_moe_twin(dense: str, moe: str) -> None:
    small, large = load(dense), load(moe)
    assert small.data == large.data and small.optimizer == large.optimizer
    sizes = [config.model.num_params(1000) for config in (large, small)]
    assert sizes[0] is not None and sizes[1] is not None
    active = sizes[0].active / sizes[1].total
    assert 1.0 < active < 1.01
