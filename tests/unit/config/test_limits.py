"""Experiment files that were made to hang or confuse a reader: one line each."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ds_seq.config.load import load_experiment
from ds_seq.config.yaml_file import parse_yaml
from ds_seq.errors import UserError
from tests.unit.config.fixture_types import WriteFile

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}], y{n}: 1}}\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "x:5: not valid YAML: more than 10,000 values, counting repeated aliases"),
        (MERGES, "not valid YAML: more than 10,000 values"),
        (f"a: [{'1,' * 11_000}]", "more than 10,000 values"),
        ("x" * 300_000, "larger than"),
        ("a: &a [*a]", "x:1: not valid YAML: an alias of what contains it"),
        ("a: &a {<<: *a}", "an alias of what contains it"),
        ("a: " + "[" * 2000, "x:1: not valid YAML: nested more than 50 levels deep"),
        ("a: " + "{b: " * 2000, "nested more than 50 levels deep"),
        ('a: "b\\0c"', r"x:1: not valid YAML: the control character U\+0000"),
        ("a: 1\nb: \x07", r"x:2: not valid YAML: the control character U\+0007"),
        ('a: "\\ud800"', r"the control character U\+D800"),
        ('a: "\\e[31m"', r"the control character U\+001B"),
        ('"a\\nb": 1', "x:1: 'a\\\\nb' is no key"),
        (f"{'k' * 500}: 1", r"x:1: 'kk.*\(500 characters\) is no key"),
        (f"a: {'9' * 5000}", "x:1: not valid YAML: a number of 5,000 digits"),
        ("a: !!int x", "x:1: not valid YAML: 'x' is not of type int"),
        ("a: !!float x", "'x' is not of type float"),
        ("a: !!bool x", "'x' is not of type bool"),
        ("a: !!timestamp x", "could not determine a constructor"),
        ("a: !!set {x}", "could not determine a constructor"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_limits(text: str, message: str) -> None:
    started = time.process_time()
    with pytest.raises(UserError, match=message) as caught:
        parse_yaml(text.encode(), Path("x"))
    assert time.process_time() - started < 5.0
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


def test_aliases_and_merges_within_reason() -> None:
    text = "base: &base {x: 1, y: [1, 2]}\nother: {<<: *base, x: 2}\nboth: [*base, *base]\n"
    data = parse_yaml(text.encode(), Path("x")).data
    assert data["other"] == {"x": 2, "y": [1, 2]} and len(data["both"]) == 2


@pytest.mark.parametrize(
    "setting",
    [
        "model.encoder_layers=1000000000",
        "model.decoder_layers=1001",
        "model.d_model=10000000000",
        "model.ffn_dim=100000000",
        "model.num_heads=100000000",
        "model.max_positions=1000000000000",
        "model.moe={num_experts: 1000000000}",
        "model.moe={num_experts: [1000000000]}",
        "model.moe={shared_experts: 1000000000}",
        "generation.beam=1000000000",
        "data.vocab.size=1000000000000",
    ],
)
def test_sizes_beyond_every_model(experiment: Path, setting: str) -> None:
    with pytest.raises(UserError, match="should be") as caught:
        load_experiment(experiment, [setting])
    assert setting.split("=")[0] in str(caught.value)


def test_the_deepest_model_is_counted_at_once(experiment: Path) -> None:
    deep = ["model.encoder_layers=1000", "model.decoder_layers=1000", "model.moe.every=2"]
    started = time.process_time()
    assert load_experiment(experiment, deep).model.num_params(100) is not None
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize(
    "setting",
    ["name=..", "data.source_lang=../x", "data.target_lang=/x", "data.source_lang=a/b"],
)
def test_names_stay_in_their_folder(experiment: Path, setting: str) -> None:
    with pytest.raises(UserError, match="does not fit"):
        load_experiment(experiment, [setting])


def test_many_mistakes_are_cut_short(experiment: Path) -> None:
    with open(experiment, "a", encoding="utf-8") as file:
        file.writelines(f"key{n}: 1\n" for n in range(200))
    with pytest.raises(UserError) as caught:
        load_experiment(experiment)
    assert len(str(caught.value).splitlines()) == 31
    assert "has more mistakes" in str(caught.value).splitlines()[-1]


def test_a_chain_of_parents_ends(write: WriteFile) -> None:
    for number in range(40):
        write(f"p{number}.yaml", f"extends: p{number + 1}.yaml\n")
    with pytest.raises(UserError, match="more than 20 files extend another"):
        load_experiment(write("child.yaml", "extends: p0.yaml\n"))
