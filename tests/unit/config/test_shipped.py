"""What the comments of the shipped experiments say holds."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from ds_seq.commands import COMMANDS
from ds_seq.config.cost.estimate import estimate
from ds_seq.config.cost.report import cost_values
from ds_seq.config.deepspeed import engine_config_for
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import load_experiment
from ds_seq.config.shipped import KINDS, Recipe, experiments_folder, read_recipe, recipes

ROOT = Path(__file__).parents[3]
RECIPES = recipes()
ESTIMATED = [r for r in RECIPES if r.estimated and r.name != "finetune_huggingface"]
HEADING = re.compile(r"^## (?:[\d-]+ )?(.*)$", re.MULTILINE)
WORLD = re.compile(r"--world (\d+)(?: --sentence-length (\d+))?")
PROGRAM = 1.0  # GB of Python and torch on a CPU
SENTENCE = 32  # tokens, where an estimate names no other length


def section_of_results(title: str) -> str:
    """The text of the sections of RESULTS.md with a title."""
    pieces = HEADING.split((ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8"))
    return "\n".join(t for name, t in zip(pieces[1::2], pieces[2::2], strict=True) if name == title)


def number_in(text: str, pattern: str) -> float | None:
    found = re.search(pattern, text)
    return None if found is None else float(found[1])


def test_every_file_is_a_recipe() -> None:
    assert {recipe.path for recipe in RECIPES} == set(experiments_folder().glob("*.yaml"))
    assert {recipe.kind for recipe in RECIPES} == set(KINDS)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_measured_figures_are_in_the_results(recipe: Recipe) -> None:
    if recipe.measured is not None:
        section = section_of_results(recipe.measured)
        (score,) = re.findall(r"\d+\.\d+", recipe.expect)
        assert score in section
    quoted = re.findall(r'"([^"]+)"', recipe.estimated or "")
    assert all(section_of_results(title) for title in quoted)
    assert recipe.hours > 0 and recipe.memory > 0


@pytest.mark.parametrize("recipe", ESTIMATED, ids=lambda recipe: recipe.name)
def test_estimates_are_those_of_check(recipe: Recipe) -> None:
    said = recipe.estimated or ""
    world = WORLD.search(said)
    assert world is not None
    config = load_experiment(recipe.path)
    engine = engine_config_for(config, world_size=int(world[1]))
    costs = estimate(config, engine, int(world[1]), int(world[2] or SENTENCE), None)
    assert costs is not None
    values = cost_values(costs)
    memory = values["memory"]["peak"] / 1e9 + PROGRAM * ("1 GB for the program" in said)
    assert recipe.memory == pytest.approx(memory, rel=0.05)
    hours = hours_of(config, said, values["flops"]["batch"])
    assert hours is None or recipe.hours == pytest.approx(hours, rel=0.05)


def hours_of(config: ExperimentConfig, said: str, operations: float) -> float | None:
    """Hours of all updates at the speed that a recipe names; None if it names none."""
    share = number_in(said, r"at ([\d.]+)% of 989 TFLOP/s")
    host = number_in(said, r"at ([\d.]+) GFLOP/s")
    if share is None and host is None:
        return None
    speed = share / 100 * 989e12 if share is not None else (host or 0.0) * 1e9
    least = (number_in(said, r"no batch in less than (\d+) ms") or 0.0) / 1000
    batches = config.train.max_updates * config.train.accumulate
    return batches * max(operations / speed, least) / 3600


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_steps_are_commands_for_this_file(recipe: Recipe) -> None:
    own = f"configs/experiments/{recipe.name}.yaml"
    assert any(f"ds-seq prepare {own}" in step for step in recipe.steps)
    assert any(f"ds_seq train {own}" in step.replace("ds-seq", "ds_seq") for step in recipe.steps)
    for step in recipe.steps:
        found = re.search(r"(?:\bds-seq|-m ds_seq) (.*)", step)
        if found is not None:
            name, *arguments = shlex.split(found[1])
            module = COMMANDS[name].arguments
            assert module is not None
            import_module(module).build_parser().parse_intermixed_args(arguments)


def test_a_comment_that_lacks_a_fact_is_an_error_and_a_file_without_one_no_recipe(
    tmp_path: Path,
) -> None:
    text = (experiments_folder() / "tiny_dense.yaml").read_text(encoding="utf-8")
    for changed in (
        text.replace("# Kind: translation\n", ""),
        text.replace("# Estimated:", "# Guessed:").replace("# Measured:", "# Guessed:"),
        text.replace("# Kind:", "# Hours: 3\n# Kind:"),
    ):
        path = tmp_path / "x.yaml"
        path.write_text(changed, encoding="utf-8")
        with pytest.raises(ValueError, match="x.yaml"):
            read_recipe(path)
