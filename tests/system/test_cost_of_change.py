"""What a part of each kind costs: from outside no file of ds_seq, inside three at most.

The toys inside are added to a copy of the package, all of them, and used by one process.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.system.commands import REPOSITORY, Finished, run
from tests.system.runs import Lab
from tests.system.toys.inside import EXPERTS, TOYS
from tests.system.toys.life import live
from tests.system.toys.toy import Toy, add, result_file

MOST_FILES = 3
# one of each package that has joints; the others are as alike as axes are
BY_DEFAULT = {"mixer", "criterion", "router", "task"}
TOY = "tests.system.toys"
LONG = ("data.max_source_length=128", "data.max_target_length=128", "model.max_positions=128")
FROM_OUTSIDE = {
    "criterion": (f"criterion={{name: '{TOY}.focal:Focal', options: {{gamma: 1.5}}}}",),
    "router": (f"model.moe={EXPERTS}, router: '{TOY}.hash_router:HashRouter'}}",),
    "router with options": (
        f"model.moe={EXPERTS}, router: {{name: '{TOY}.hash_router:HashRouter', "
        "options: {salt: 7}}}",
    ),
    "task": (
        "task={name: 'tests.system.outside:CopyTask', options: {lines: 100}}",
        "validation={metrics: [misses], best: misses, max_sentences: 4}",
        "train.validate_every=2",
    ),
    "data source": (
        f"data.source={{name: '{TOY}.first_pairs:open_first', options: {{pairs: 150}}}}",
    ),
    "tokenizer": (
        "data.vocab={name: 'tests.data.characters:CharacterTokenizer', size: 200, "
        "model_type: unigram, options: {upper: true}}",
        *LONG,
    ),
    "metric": (
        "validation={metrics: ['tests.system.test_metrics:surplus'], best: loss, max_sentences: 4}",
        "train.validate_every=2",
    ),
}


@pytest.mark.parametrize(
    "settings",
    [
        # the router that has options is imported in the same way
        pytest.param(settings, id=name, marks=[pytest.mark.slow] * (name == "router"))
        for name, settings in FROM_OUTSIDE.items()
    ],
)
def test_a_part_from_outside_touches_no_file(
    lab: Lab, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    if any(setting.startswith("data.vocab") for setting in settings):
        settings += (f"data.dir={tmp_path}/data",)
    live(lab.dense, settings, tmp_path / "run")


Used = Callable[[bool], tuple[Path, Finished]]


@pytest.fixture(scope="module")
def used(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Used:
    """Whether of the slow toys -> what came of each, and what their process printed."""
    return cache(lambda is_slow: _use(lab, tmp_path_factory.mktemp("cost"), is_slow))


def _use(lab: Lab, folder: Path, is_slow: bool) -> tuple[Path, Finished]:
    shutil.copytree(
        REPOSITORY / "ds_seq", folder / "ds_seq", ignore=shutil.ignore_patterns("__pycache__")
    )
    results = folder / "results"
    results.mkdir()
    for toy in TOYS:
        try:
            add(toy, folder / "ds_seq")
        except AssertionError as error:  # the others are used anyway
            result_file(toy, results).write_text(json.dumps(str(error)), encoding="utf-8")
    there = ["sh", "-c", 'cd "$0" && exec "$@"', folder]  # where `python -m` looks first
    parts = [toy.part for toy in TOYS if (toy.part not in BY_DEFAULT) == is_slow]
    command = [*there, sys.executable, "-m", f"{TOY}.driver", lab.dense, results, *parts]
    return results, run(command, timeout=300)


@pytest.mark.parametrize(
    "toy",
    [
        pytest.param(toy, id=toy.part, marks=[pytest.mark.slow] * (toy.part not in BY_DEFAULT))
        for toy in TOYS
    ],
)
def test_a_part_inside_trains_resumes_and_translates(used: Used, toy: Toy) -> None:
    folder, finished = used(toy.part not in BY_DEFAULT)
    result = result_file(toy, folder)
    assert result.is_file(), finished
    problem = json.loads(result.read_text(encoding="utf-8"))
    assert problem is None, problem


@pytest.mark.parametrize("toy", TOYS, ids=[toy.part for toy in TOYS])
def test_a_part_inside_costs_three_files_at_most(toy: Toy) -> None:
    assert len(toy.files) <= MOST_FILES, toy.files


def files_in_architecture() -> dict[str, list[str]]:
    """The files that "Adding a part" lists, by the kind of part.

    A paragraph begins with `**A norm.**` and holds ``Files: `a.py`, `b.py`.``.
    """
    text = (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.split("\n## Adding a part\n")[1].split("\n## ")[0]
    listed = {}
    for paragraph in re.split(r"\n(?=\*\*)", section):
        title = re.match(r"\*\*(?:An? )?([^*]+)\.\*\*", paragraph.strip())
        files = re.search(r"Files:\s+((?:`[^`]+`,?\s*)+)\.", paragraph)
        if title is not None and files is not None:
            listed[title[1].lower()] = sorted(re.findall(r"`([^`]+)`", files[1]))
    return listed


def test_architecture_lists_exactly_these_files() -> None:
    assert files_in_architecture() == {toy.part: toy.files for toy in TOYS}
