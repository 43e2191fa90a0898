"""The experiments that come with ds_seq, and the facts at the top of each file.

An experiment of `configs/experiments` begins with a comment of facts, then notes:

    # Recipe: WMT16 English to German, Transformer base
    # Kind: translation
    # Text: bash prepare_data/wmt16_en_de.sh
    # Expect: 27.3 BLEU
    # Hours: 11
    # Memory: 5
    # Hardware: 8 GPUs
    # Estimated: BLEU of Vaswani et al., 2017; the rest by `ds-seq check --world 8`
    # Steps:
    #   ds-seq prepare configs/experiments/wmt16_en_de_base.yaml
    #   ds-seq train configs/experiments/wmt16_en_de_base.yaml
    #
    # Notes, up to the first line that is no comment.

`Hours` are those of the training, and `Memory` is the most that a process or a GPU needs, in GB; a
fact may continue on lines that are indented. `Measured` names the section of
`benchmarks/RESULTS.md` in which the figures are; `Estimated` says where those are from that are not
measured. A file without such a comment is no recipe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ds_seq.plugins import nearest

KINDS = (
    "translation",
    "experts",
    "several languages",
    "students",
    "summarization",
    "language models",
    "adapters",
    "text of one side",
    "models of others",
)
"""Kinds of recipes, in the order in which they are listed."""

_FACT = re.compile(r"# ([A-Z][a-z]+):(?: (.*))?")
_MORE = re.compile(r"#   +(\S.*)")
_ONE_LINE = ("Recipe", "Kind", "Text", "Expect", "Hours", "Memory", "Hardware")
_FIRST = b"# Recipe: "
_FACTS = (*_ONE_LINE, "Measured", "Estimated", "Steps")


@dataclass(frozen=True)
class Recipe:
    """An experiment that comes with ds_seq.

    Attributes:
        name: name of the file without `.yaml`.
        path: the file.
        summary: what it trains.
        kind: one of `KINDS`.
        text: how to get the text.
        expect: score to expect.
        hours: duration of the training.
        memory: the most that a process or a GPU needs, in GB.
        hardware: what `hours` and `memory` are for.
        measured: section of `benchmarks/RESULTS.md` with figures; None: all are estimated.
        estimated: where the other figures come from; None: all are measured.
        steps: commands from the text to the score.
        notes: what else there is to know.
    """

    name: str
    path: Path
    summary: str
    kind: str
    text: str
    expect: str
    hours: float
    memory: float
    hardware: str
    measured: str | None
    estimated: str | None
    steps: tuple[str, ...]
    notes: str


def configs_folder() -> Path:
    """Return the folder with `experiments` and `ds_config`.

    It is in the package where ds_seq was installed, and next to it in a checkout.
    """
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def experiments_folder() -> Path:
    """Return the folder with the experiments."""
    return configs_folder() / "experiments"


@cache
def recipes() -> tuple[Recipe, ...]:
    """Return all recipes, by kind and name.

    Raises:
        ValueError: see `read_recipe`.
    """
    paths = sorted(experiments_folder().glob("*.yaml"))
    found = [read_recipe(path) for path in paths if path.read_bytes().startswith(_FIRST)]
    return tuple(sorted(found, key=lambda recipe: (KINDS.index(recipe.kind), recipe.name)))


def unknown_recipe(name: str) -> str:
    """Return what to say about a name that no recipe has."""
    known = [recipe.name for recipe in recipes()]
    return f"no recipe {name!r}{nearest(name, known)}; `ds-seq recipes ls` lists all {len(known)}"


def read_recipe(path: Path) -> Recipe:
    """Read the comment at the top of an experiment.

    Raises:
        ValueError: a fact is missing or unknown, or is there twice.
    """
    facts, notes = _comment(path)
    missing = [name for name in (*_ONE_LINE, "Steps") if not facts.get(name)]
    if not {"Measured", "Estimated"} & facts.keys():
        missing.append("Measured or Estimated")
    if missing:
        raise ValueError(f"{path}: its comment lacks {', '.join(missing)}")
    fact = {name: " ".join(lines) for name, lines in facts.items() if name != "Steps"}
    return Recipe(
        name=path.stem,
        path=path,
        summary=fact["Recipe"],
        kind=fact["Kind"],
        text=fact["Text"],
        expect=fact["Expect"],
        hours=float(fact["Hours"]),
        memory=float(fact["Memory"]),
        hardware=fact["Hardware"],
        measured=fact.get("Measured"),
        estimated=fact.get("Estimated"),
        steps=tuple(facts["Steps"]),
        notes=notes,
    )


def _comment(path: Path) -> tuple[dict[str, list[str]], str]:
    """Return the facts of a file, line by line, and its notes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    facts: dict[str, list[str]] = {}
    name = ""
    for number, line in enumerate(lines[:end]):
        fact, more = _FACT.fullmatch(line), _MORE.fullmatch(line)
        if fact is not None:
            name = fact[1]
            if name not in _FACTS or name in facts:
                raise ValueError(f"{path}:{number + 1}: {name} is unknown or given twice")
            facts[name] = [fact[2]] if fact[2] else []
        elif more is not None and facts:
            facts[name].append(more[1])
        else:  # an empty comment ends the facts
            notes = (line.removeprefix("#").removeprefix(" ") for line in lines[number:end])
            return facts, "\n".join(notes).strip("\n")
    return facts, ""
