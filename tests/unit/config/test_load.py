"""YAML files, `extends`, overrides, and messages about errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_seq.config.load import dump, load_experiment, read_experiment
from ds_seq.config.schema import Section, sections
from ds_seq.config.yaml_file import parse_value, to_yaml
from ds_seq.errors import UserError
from tests.unit.config.fixture_types import WriteFile


def complaints(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_experiment(path, overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("5e-4", 5e-4),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("12", 12),
        ("-3", -3),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("", None),
        ("~", None),
        ("null", None),
        ("'null'", "null"),
        ("[1, {a: 5e-1}]", [1, {"a": 0.5}]),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


def test_dumped_yaml_means_the_same_in_both_versions() -> None:
    data = {
        "a": "no",
        "b": "5e-4",
        "c": 5e-4,
        "d": 1e-8,
        "e": "1:30",
        "f": None,
        "g": "ü\n",
        "h": "",
    }
    text = to_yaml(data)
    assert yaml.safe_load(text) == data
    assert parse_value(text) == data


def test_norwegian_and_scientific_notation_in_a_file(experiment: Path) -> None:
    text = experiment.read_text().replace("source_lang: en", "source_lang: no")
    experiment.write_text(text + "optimizer: {lr: 5e-4}\n")
    config = load_experiment(experiment)
    assert config.data.source_lang == "no"
    assert config.optimizer.lr == 5e-4  # type: ignore[union-attr]


def test_json_is_yaml(write: WriteFile, minimal: dict[str, Any]) -> None:
    path = write("small.json", json.dumps(minimal, indent=1))
    assert load_experiment(path).name == "small"


def test_precedence_is_override_file_parent_default(write: WriteFile, experiment: Path) -> None:
    write("parent.yaml", "extends: small.yaml\ntrain: {seed: 2, accumulate: 2, log_every: 2}\n")
    child = write("sub/child.yaml", "extends: ../parent.yaml\ntrain: {seed: 3, accumulate: 3}\n")
    train = load_experiment(child, ["train.seed=4"]).train
    assert (train.seed, train.accumulate, train.log_every, train.keep_last) == (4, 3, 2, 2)


def test_lists_replace_and_mappings_merge(write: WriteFile, experiment: Path) -> None:
    write(
        "child.yaml",
        "extends: small.yaml\n"
        "data: {target_lang: fr, raw: {train: [{source: a, target: b}, {source: c, target: d}]}}\n",
    )
    grandchild = write(
        "grandchild.yaml", "extends: child.yaml\ndata: {raw: {train: [{source: e, target: f}]}}\n"
    )
    raw = load_experiment(grandchild).data.raw
    assert [split.source for split in raw.train] == ["e"]
    assert [split.source for split in raw.valid] == ["valid.en"]


def test_another_plugin_drops_the_options_of_the_parents(
    write: WriteFile, experiment: Path
) -> None:
    write(
        "parent.yaml",
        "extends: small.yaml\noptimizer: {name: adam, betas: [0.1, 0.2], weight_decay: 0.5}\n",
    )
    child = write("child.yaml", "extends: parent.yaml\noptimizer: {name: sgd, lr: 1.0}\n")
    sgd = load_experiment(child).optimizer
    assert (sgd.name, sgd.weight_decay) == ("sgd", 0.0)  # type: ignore[union-attr]
    same = load_experiment(child, ["optimizer.lr=2.0"]).optimizer
    assert (same.name, same.lr) == ("sgd", 2.0)  # type: ignore[union-attr]
    for order in (1, -1):
        overrides = ["optimizer.lr=3.0", "optimizer.name=adamw"][::order]
        adam = load_experiment(child, overrides).optimizer
        assert (adam.name, adam.lr) == ("adamw", 3.0)  # type: ignore[union-attr]


def test_overrides_take_any_yaml(experiment: Path) -> None:
    config = load_experiment(
        experiment,
        ["model.moe={num_experts: 4}", "model.moe.top_k=2", "run_dir=a=b", "train.max_epochs="],
    )
    assert config.model.moe is not None
    assert (config.model.moe.num_experts, config.model.moe.top_k) == (4, 2)
    assert config.run_dir == "a=b"
    assert config.train.max_epochs is None


def test_dump_loads_to_the_same_experiment(write: WriteFile, experiment: Path) -> None:
    config = load_experiment(
        experiment,
        [
            "data.source_lang=no",
            "model.preset=ds_moe_tiny",
            "criterion={name: model_and_base, loss_weights: {router_z: null, load_balance: 1e-2}}",
            "optimizer.betas=[0.9, 0.95]",
        ],
    )
    again = load_experiment(write("again.yaml", dump(config)))
    assert again == config


def test_all_errors_are_reported_at_once_with_line_and_hint(write: WriteFile) -> None:
    path = write(
        "bad.yaml",
        "name: bad\n"
        "data:\n"
        "  source_lang: en\n"
        "  target_lang: de\n"
        "  raw: {valid: {source: a, targt: b}}\n"
        "modell: 3\n"
        "model:\n"
        "  num_headz: 4\n"
        "  norm_position: prae\n"
        "  moe: {topk: 4}\n"
        "optimizer:\n"
        "  name: adamm\n"
        "train:\n"
        "  clip_norm: much\n",
    )
    found = complaints(path, "train.max_tokenz=3")
    expected = {
        "bad.yaml:2: data.dir: missing",
        "bad.yaml:5: data.raw.valid.target: missing",
        "bad.yaml:5: data.raw.valid.targt: unknown key (did you mean 'target'?)",
        "bad.yaml:6: modell: unknown key (did you mean 'model'?)",
        "bad.yaml:8: model.num_headz: unknown key (did you mean 'num_heads'?)",
        "bad.yaml:9: model.norm_position: should be 'pre', 'post', 'deepnorm' or 'subln', not "
        "'prae' (did you mean 'pre'?)",
        "bad.yaml:10: model.moe.topk: unknown key (did you mean 'top_k'?)",
        "bad.yaml:12: optimizer.name: no optimizer 'adamm' (did you mean 'adam'?)",
        "bad.yaml:14: train.clip_norm: should be a number, not",
        "command line: train.max_tokenz: unknown key (did you mean 'max_tokens'?)",
    }
    assert len(found) == len(expected)
    for start in expected:
        assert any(line.removeprefix(f"{path.parent}/").startswith(start) for line in found), start


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lr=1", "it belongs to optimizer.lr"),
        ("max_tokens=1", "it belongs to train.max_tokens or generation.max_tokens"),
        ("train.gradient_clipping=1", "ds_seq's name for it is train.clip_norm"),
        ("zero_optimization.stage=2", "it belongs in the DeepSpeed JSON"),
        ("train.overlap_comm=true", "it belongs in the DeepSpeed JSON"),
        ("optimizer.momentum=0.9", "adamw does not accept it"),
        ("model.options={a: 1}", "options: unknown key; only an external model (`package.mod"),
        ("criterion.base={name: cross_entropy}", "criterion.base: unknown key"),
    ],
)
def test_a_misplaced_key_is_reported_with_its_home(
    experiment: Path, override: str, words: str
) -> None:
    (line,) = complaints(experiment, override)
    assert words in line


WRONG = ("x", "[x]", "[[]]", "{x: 1}", "3.5", "-3", "true", "null")


def one_of_each_type() -> list[tuple[Section, str]]:
    """Sections and fields, one for each type of a value with its bounds."""
    found: dict[str, tuple[Section, str]] = {}
    for section, name in every_option():
        field = section.config.model_fields[name]
        found.setdefault(f"{field.annotation} {field.metadata}", (section, name))
    return list(found.values())


def every_option() -> list[tuple[Section, str]]:
    return [(section, name) for section in sections() for name in section.config.model_fields]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize(
    "options", [one_of_each_type, pytest.param(every_option, marks=pytest.mark.slow)]
)
def test_a_wrong_value_is_answered_in_the_words_of_a_file(
    minimal: dict[str, Any], value: str, options: Callable[[], list[tuple[Section, str]]]
) -> None:
    """For options of the schema: no traceback, and none of pydantic's own words."""
    words = r"\b(valid|parse|interpret|Input|constrained|None|True)\b"
    for section, field in options():
        kind = section.variant.split(",")[0]
        overrides = [f"{section.path}.name={kind}"] if kind not in ("", "external") else []
        try:
            read_experiment(minimal, [*overrides, f"{section.path_of(field)}={value}"])
        except UserError as error:
            assert not re.search(words, str(error).replace("data.raw.valid", "")), str(error)


def test_a_mapping_is_not_changed_by_overrides(minimal: dict[str, Any]) -> None:
    before = json.dumps(minimal)
    assert read_experiment(minimal, ["data.vocab.size=99"]).data.vocab.size == 99
    assert json.dumps(minimal) == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer=adam", "optimizer: should be a section"),
        ("model.moe=3", "model.moe: should be a section"),
        ("model.preset=[1]", "model.preset"),
        ("model.preset=tinny", "model.preset: no preset 'tinny' (did you mean 'tiny'?)"),
        (
            "model.name=transfomer",
            "model.name: no model 'transfomer' (did you mean 'transf",
        ),
        ("model=transformer", "model: should be a section"),
        (
            "model.positions=rotery",
            "model.positions: no positions 'rotery' (did you mean 'rot",
        ),
        (
            "model.positions.name=rotery",
            "model.positions.name: no positions 'rotery' (did you",
        ),
        (
            "model.positions=3",
            "model.positions: no positions 3; there are sinusoidal, le",
        ),
        ("model.positions=", "model.positions: no positions"),
        ("model.positions={name: rotary, base: 3}", "model.positions.base: unknown key"),
        (
            "model.norm=lyer",
            "model.norm: no norm 'lyer' (did you mean 'layer'?); there are",
        ),
        ("model.norm.name=lyer", "model.norm.name: no norm 'lyer' (did you mean"),
        ("model.norm.eps=0", "model.norm.eps: should be greater than 0, not 0"),
        ("model.norm.epss=1", "model.norm.epss: unknown key (did you mean 'eps'?)"),
        ("name=a b", "name: 'a b' does not fit"),
        ("criterion.name=a:b:c", "criterion.name: 'a:b:c' does not fit"),
        ("optimizer.betas=[0.9, 2]", "optimizer.betas[1]: should be less than 1, not 2"),
        ("optimizer.lr_factors={expert: 2}", "lr_factors.expert: no part 'expert' (did you mean"),
        ("optimizer.betas=[0.9]", "optimizer.betas: should be 2 numbers, such as [0.9, 0.98]"),
        ("optimizer=adam", "write {name: adam}, not 'adam'"),
        ("validation.metrics=bleu", "should be a list; write [bleu], not 'bleu'"),
        (
            "data.raw.train=x",
            "a section {source: ..., target: ..., ...} or a list of them",
        ),
        ("data.raw.train=[x]", "data.raw.train[0]: should be a section"),
        ("data.source_lang=3", "should be text; put it in quotes"),
        ("train.tensorboard=perhaps", "should be true or false, not 'perhaps'"),
        ("run_dir=3", "should be text; put it in quotes"),
        ("criterion={name: distillation, teacher: 3}", "teacher: should be text or a list of them"),
        ("model.preset=transformer_wmt_en_de", "(did you mean 'wmt_en_de'?)"),
        ("model.preset=transformer_moe", "no preset 'transformer_moe'; there are"),
        ("criterion={name: model_and_base, base: {name: distilation}}", "criterion.base.name: no"),
        ("train.seed", "does not have the form"),
        ("=3", "does not have the form"),
        ("train..seed=3", "does not have the form"),
        ("train.seed=[1", "is not a YAML value"),
        ("train.seed.x=1", "train.seed"),
        ("extends=other.yaml", "extends: unknown key"),
    ],
)
def test_odd_overrides(experiment: Path, override: str, words: str) -> None:
    (line,) = complaints(experiment, override)
    assert line.startswith("command line: ")
    assert words in line


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # a mistake elsewhere hides nothing
        (["optimizer.lr=x"], ["optimizer.lr", "train.expert_parallel", "data.max_source_length"]),
        (["modell=3"], ["modell", "train.expert_parallel", "data.max_source_length"]),
        # a mistake in a section silences what is said of that section together with others
        (["train.seed=x"], ["train.seed", "data.max_source_length"]),
        (["data.dir=3"], ["data.dir", "train.expert_parallel"]),
        (["model.norm=lyer"], ["model.norm"]),
        (["data.dir=3", "model.norm=lyer"], ["data.dir", "model.norm"]),
        ([], ["train.expert_parallel", "data.max_source_length"]),
    ],
)
def test_valid_sections_are_checked_against_each_other_despite_invalid_ones(
    write: WriteFile, experiment: Path, overrides: list[str], expected: list[str]
) -> None:
    path = write(
        "child.yaml",
        "extends: small.yaml\n"
        "data: {max_source_length: 2000}\n"
        "model: {moe: {num_experts: 3}}\n"
        "train: {expert_parallel: 2}\n",
    )
    lines = complaints(path, *overrides)
    assert sorted(line.split(": ")[1] for line in lines) == sorted(expected)


def test_checks_between_sections_name_the_line_to_change(
    write: WriteFile, experiment: Path
) -> None:
    path = write("child.yaml", "extends: small.yaml\n\ntrain:\n  expert_parallel: 2\n")
    (line,) = complaints(path)
    assert line.startswith(f"{path}:4: train.expert_parallel: 2, but model.moe is null")


def test_a_replaced_list_takes_its_lines_along(write: WriteFile, experiment: Path) -> None:
    write(
        "parent.yaml",
        "extends: small.yaml\ndata:\n  raw:\n    valid:\n    - source: a\n      target: b\n",
    )
    child = write("child.yaml", "extends: parent.yaml\ndata: {raw: {valid: [{source: c}]}}\n")
    (line,) = complaints(child)
    assert line.startswith(f"{child}:2: data.raw.valid[0].target: missing")


def test_anchors_and_merge_keys(write: WriteFile, experiment: Path) -> None:
    path = write(
        "anchors.yaml",
        "extends: small.yaml\n"
        "data: {raw: {train: &files {source: a, target: b}, test: {<<: *files, target: c}}}\n",
    )
    (test,) = load_experiment(path).data.raw.test
    assert (test.source, test.target) == ("a", "c")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "contains no mapping"),
        ("- a\n", "contains no mapping"),
        ("name: a\nname: b\n", "bad.yaml:2: 'name' is already given in line 1"),
        ("name: a\ndata: [1\n", "not valid YAML"),
        ("name: a\n1: b\n", "bad.yaml:2: a key must be text"),
        ("name: !!python/name:os.system x\n", "not valid YAML"),
        ("extends: [a, b]\n", "should be the name of one file"),
        ("extends: bad.yaml\n", "in a cycle"),
        ("extends: missing.yaml\n", "missing.yaml: cannot be read: No such file"),
    ],
)
def test_files_that_are_no_experiment(write: WriteFile, text: str, words: str) -> None:
    (line,) = complaints(write("bad.yaml", text))
    assert words in line


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"name: \xff\n")
    assert complaints(path) == [f"{path}: not UTF-8 (byte 6)"]
