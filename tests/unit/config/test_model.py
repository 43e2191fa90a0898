"""The model section: a union by name, made of axes, of which some have a short form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from torch import nn

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.flops import forward_flops
from ds_seq.config.load import dump, load_experiment
from ds_seq.config.model import ExternalModelConfig, ModelConfig, OtherModel, TransformerConfig
from ds_seq.config.model.norm import LayerNormConfig
from ds_seq.config.model.positions import LearnedConfig, RotaryConfig, SinusoidalConfig
from ds_seq.config.model.union import with_layers
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.models.build import build_seq2seq
from ds_seq.modules.positions import LearnedPositions, SinusoidalPositions
from ds_seq.names import AttentionKind, Stack
from ds_seq.plugins import trusting
from tests.unit.config.fixture_types import MakeConfig, WriteFile

MODELS: TypeAdapter[Any] = TypeAdapter(ModelConfig)

# what version 0.1 wrote into its run folders
OLD_MODEL = """\
model:
  name: transformer
  options: {}
  preset: tiny
  d_model: 128
  encoder_layers: 2
  decoder_layers: 3
  num_heads: 4
  ffn_dim: 512
  activation: swiglu
  dropout: 0.1
  attention_dropout: 0.0
  activation_dropout: 0.0
  norm_position: pre
  positions: learned
  max_positions: 1024
  share_embeddings: all
  activation_checkpointing: false
  moe: null
"""


def old_run(write: WriteFile, **changes: str) -> Path:
    text = OLD_MODEL
    for key, value in changes.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {key}: ")]
        text = text.replace(line, f"  {key}: {value}")
    return write("run/config.yaml", f"extends: ../small.yaml\n{text}")


def test_the_config_of_an_old_run_folder_loads(write: WriteFile, experiment: Path) -> None:
    model = load_experiment(old_run(write)).model
    assert isinstance(model, TransformerConfig)
    assert (model.d_model, model.decoder_layers, model.preset) == (128, 3, "tiny")
    assert model.positions == LearnedConfig()
    assert model.norm == LayerNormConfig(eps=1e-5)
    assert set(model.model_dump()) >= {
        line.split(":")[0].strip() for line in OLD_MODEL.splitlines()[3:]
    }


def test_the_config_of_an_old_run_of_an_external_model_loads(
    write: WriteFile, experiment: Path
) -> None:
    path = old_run(write, name="my_lab.models:Best", options="{depth: 3}")
    model = load_experiment(path).model
    assert isinstance(model, ExternalModelConfig)
    assert (model.name, model.options) == ("my_lab.models:Best", {"depth": 3})
    assert (model.d_model, model.layers_of("decoder"), model.activation) == (128, 3, "swiglu")


@pytest.mark.parametrize(
    ("form", "section"),
    [
        ("sinusoidal", SinusoidalConfig()),
        ("learned", LearnedConfig()),
        ({"name": "rotary"}, RotaryConfig()),
        ({}, SinusoidalConfig()),
        (RotaryConfig(), RotaryConfig()),
    ],
    ids=str,
)
def test_positions_by_name_or_as_a_section(form: Any, section: object) -> None:
    assert TransformerConfig.model_validate({"positions": form}).positions == section


def test_a_section_with_nothing_but_a_name_is_written_in_short(make: MakeConfig) -> None:
    model = make(model={"positions": {"name": "learned"}, "norm": "layer"}).model_dump()["model"]
    assert model["positions"] == "learned"
    assert model["norm"] == {"name": "layer", "eps": 1e-5}


def test_a_dump_without_defaults_has_the_name(make: MakeConfig) -> None:
    config = make(model={"positions": {"name": "rotary"}, "norm": {"name": "rms", "eps": 1e-3}})
    model = config.model_dump(exclude_defaults=True)["model"]
    assert model["positions"] == "rotary"
    assert model["norm"] == {"name": "rms", "eps": 1e-3}


@pytest.mark.parametrize(
    ("override", "positions", "eps"),
    [
        ("model.positions=rotary", "rotary", 1e-6),
        ("model.positions={name: rotary}", "rotary", 1e-6),
        ("model.positions.name=rotary", "rotary", 1e-6),
        ("model.norm.eps=1e-3", "learned", 1e-3),
        ("model.norm={eps: 1e-3}", "learned", 1e-3),
        ("model.norm=layer", "learned", 1e-5),
    ],
)
def test_a_dump_can_be_overridden_in_each_form(
    write: WriteFile, experiment: Path, override: str, positions: str, eps: float
) -> None:
    config = load_experiment(experiment, ["model.positions=learned", "model.norm.eps=1e-6"])
    run = write("run/config.yaml", dump(config))
    assert load_experiment(run) == config
    model = load_experiment(run, [override]).model
    assert (model.positions.name, model.norm.eps) == (positions, eps)


def test_a_section_in_short_form_can_be_extended(write: WriteFile, experiment: Path) -> None:
    path = write("short.yaml", "extends: small.yaml\nmodel: {norm: layer}\n")
    assert load_experiment(path, ["model.norm.eps=0.5"]).model.norm.eps == 0.5
    both = ["model.norm=layer", "model.norm.eps=0.5"]
    assert load_experiment(path, both).model.norm.eps == 0.5
    assert load_experiment(path, both[::-1]).model.norm.eps == 1e-5


def test_the_chosen_positions_and_norm_are_built() -> None:
    def build(**options: Any) -> Any:
        sizes = {"d_model": 8, "num_heads": 2, "ffn_dim": 8, "max_positions": 9}
        return build_seq2seq(
            TransformerConfig.model_validate({**sizes, **options}), 11, 1, 0, seed=1
        )

    assert isinstance(build(positions="sinusoidal").encoder.positions, SinusoidalPositions)
    assert isinstance(build(positions={"name": "learned"}).decoder.positions, LearnedPositions)
    rotary = build(positions="rotary", norm={"eps": 0.25}, norm_position="pre")
    assert rotary.encoder.positions is None
    norms = [module for module in rotary.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 6 * 2 + 6 * 3 + 2
    assert {norm.eps for norm in norms} == {0.25}


def best(config: ExternalModelConfig, vocab_size: int, *layout: int) -> nn.Module:
    """A builder outside ds_seq."""
    return nn.Linear(config.options["width"], vocab_size)


def test_an_external_model_states_only_what_it_must() -> None:
    section = {"name": f"{__name__}:best", "options": {"width": 3}, "max_positions": 50}
    config = MODELS.validate_python(section)
    assert isinstance(config, ExternalModelConfig)
    assert (config.max_positions, config.moe, config.num_params(11)) == (50, None, None)
    with trusting([config.name]):
        model = build_model(config, 11, 1, 0, seed=1)
    assert isinstance(model, nn.Linear) and model.in_features == 3


def test_sizes_of_an_external_model_need_not_suit_a_transformer() -> None:
    odd = {"d_model": 27, "num_heads": 4}
    assert MODELS.validate_python({"name": "a:B", **odd}).d_model == 27
    with pytest.raises(ValidationError, match="num_heads: 4 does not divide"):
        MODELS.validate_python(odd)
    with pytest.raises(ValidationError, match=r"moe\.layers\.encoder: 9, but encoder_layers is 6"):
        MODELS.validate_python({"name": "a:B", "moe": {"layers": {"encoder": [9]}}})


def test_only_external_models_take_options(make: MakeConfig) -> None:
    assert make(model={"name": "a:B", "options": {"x": 1}}).model.options == {"x": 1}  # type: ignore[union-attr]
    assert "options" not in make(model={"options": {}}).model_dump()["model"]
    with pytest.raises(ValidationError, match="options"):
        make(model={"options": {"x": 1}})


def test_every_union_member_has_the_required_interface() -> None:
    for section in ({}, {"name": "a:B"}):
        config = MODELS.validate_python({**section, "encoder_layers": 4, "decoder_layers": 2})
        assert config.stacks == ("encoder", "decoder")
        assert [config.layers_of(stack) for stack in config.stacks] == [4, 2]
        assert config.max_positions == 1024
        assert config.num_moe_layers == 0


def test_an_experiment_holds_either(make: MakeConfig) -> None:
    for model in ({"d_model": 16, "num_heads": 2}, {"name": "a:B", "d_model": 16}):
        config = make(model=model)
        assert ExperimentConfig.model_validate(config.model_dump(mode="json")) == config
        assert ExperimentConfig.model_validate(dict(config)) == config


class OtherConfig(OtherModel):
    """A model that is no Transformer."""

    name: str = "other"
    max_positions: int = 16
    layers: int = 3

    def layers_of(self, stack: Stack) -> int:
        return self.layers

    @property
    def state_width(self) -> None:
        return None

    @property
    def attention_maps(self) -> tuple[AttentionKind, ...]:
        return ()

    def num_params(self, vocab_size: int, source_vocab_size: int | None = None) -> None:
        return None


def test_a_model_that_is_no_transformer_has_none_of_its_parts() -> None:
    other = OtherConfig()
    parts = (other.moe, other.adapters, other.lora, other.multiway, other.num_moe_layers)
    assert parts == (None, None, None, None, 0)
    assert [other.calls_of(stack) for stack in other.stacks] == [3, 3]
    assert (other.moe_layers("encoder"), other.experts_in("decoder", 2)) == ([], 0)
    assert forward_flops(other, 100) is None
    with pytest.raises(UserError, match=r"^runs/x: other has no Transformer layers"):
        with_layers(other, "runs/x")  # type: ignore[arg-type]


def test_a_section_must_say_what_is_asked_of_every_model() -> None:
    class Silent(OtherModel):
        name: str = "silent"

    with pytest.raises(TypeError, match="abstract"):
        Silent()  # type: ignore[abstract]
