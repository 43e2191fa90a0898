"""The command `ds-seq recipes`: the experiments that come with ds_seq.

ds-seq recipes ls
ds-seq recipes show tiny_moe
ds-seq recipes cp tiny_moe my.yaml
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from ds_seq import files
from ds_seq.commands.arguments.recipes import build_parser
from ds_seq.config.shipped import Recipe, configs_folder, recipes, unknown_recipe
from ds_seq.errors import UserError

_ENGINE = re.compile(r"configs/(ds_config/\w+\.json)")
_PARENT = re.compile(r"^extends: (\w+)\.yaml$", re.MULTILINE)

_LEGEND = """\
Score, time of training, memory of a process or GPU, hardware: measured by us,
estimated, or measured in part. ds-seq recipes show NAME says where figures are
from; ds-seq recipes cp NAME makes a copy to change."""


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq recipes`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    if args.action == "ls":
        _list(args.words, args.json)
    elif args.action == "show":
        _show(_named(args, 1), args.json)
    else:
        if args.json:
            raise UserError("--json: is for ls and show")
        recipe = _named(args, 2)
        _copy(recipe, *args.words[1:])
    return 0


def _named(args: argparse.Namespace, most: int) -> Recipe:
    """Return the recipe that the first word names."""
    form = {"show": "show NAME", "cp": "cp NAME [DEST]"}[args.action]
    if not 1 <= len(args.words) <= most:
        wrong = "names no recipe" if not args.words else f"has too much: {args.words[most]}"
        raise UserError(f"ds-seq recipes {args.action}: {wrong}; the form is {form}")
    name = args.words[0].removesuffix(".yaml")
    found = next((recipe for recipe in recipes() if recipe.name == name), None)
    if found is None:
        raise UserError(unknown_recipe(name))
    return found


def _list(words: Sequence[str], as_json: bool) -> None:
    found = [recipe for recipe in recipes() if _has(recipe, words)]
    if not found:
        raise UserError(f"ds-seq recipes ls {' '.join(words)}: no recipe has all of these words")
    if as_json:
        print(json.dumps([_record(recipe) for recipe in found], indent=1))
        return
    for kind, group in groupby(found, key=lambda recipe: recipe.kind):
        print(kind)
        for recipe in group:
            hours, size = _duration(recipe.hours), f"{recipe.memory:g} GB"
            print(f"  {recipe.name:<22}{recipe.expect:<27}{hours:>7} {size:>8}  {recipe.hardware}")
            print(f"    {_origin(recipe):<11}{recipe.summary}")
        print()
    print(_LEGEND)


def _has(recipe: Recipe, words: Sequence[str]) -> bool:
    text = f"{recipe.name} {recipe.kind} {recipe.summary}".lower()
    return all(word.lower() in text for word in words)


def _origin(recipe: Recipe) -> str:
    if recipe.measured is None:
        return "estimated"
    return "measured" if recipe.estimated is None else "in part"


def _duration(hours: float) -> str:
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.3g} h"


def _show(recipe: Recipe, as_json: bool) -> None:
    text = recipe.path.read_text(encoding="utf-8")
    if as_json:
        print(json.dumps({**_record(recipe), "file": text}, indent=1))
    else:
        print(text, end="")


def _record(recipe: Recipe) -> dict[str, Any]:
    return {**asdict(recipe), "path": str(recipe.path), "figures": _origin(recipe)}


def _copy(recipe: Recipe, destination: str | None = None) -> None:
    """Copy a recipe, and what its file names of ds_seq's own, so that it works at the new place."""
    path = Path(f"{recipe.name}.yaml" if destination is None else destination)
    if path.is_dir() or (destination or "").endswith("/"):
        path = path / f"{recipe.name}.yaml"
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{path}: an experiment is a .yaml file; give such a name, or a folder")
    new: dict[Path, str] = {}
    for place, text in _copies(recipe, path):
        if new.setdefault(place, text) != text:
            raise UserError(f"{path}: is the name of the file that it extends; give another one")
    for place, text in new.items():
        if place.exists() and (place == path or place.read_bytes() != text.encode()):
            differs = "" if place == path else ", and differs from the one that is needed here"
            raise UserError(f"{place}: exists already{differs}; give another file or folder")
    for place, text in reversed(new.items()):  # the experiment last, when it can work
        if not place.exists():
            files.write_text(place, text)
            print(place)
    first, *_ = (step for step in recipe.steps if "ds-seq prepare " in step)
    print(f"\ntext: {recipe.text}\nthen: {_moved(first, recipe.name, path)}")


def _copies(recipe: Recipe, path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files of a copy: the experiment, those it extends, and settings of DeepSpeed."""
    text = recipe.path.read_text(encoding="utf-8")
    yield path, _ENGINE.sub(r"\1", _moved(text, recipe.name, path))
    for name in _ENGINE.findall(text):
        yield path.parent / name, (configs_folder() / name).read_text(encoding="utf-8")
    parent = _PARENT.search(text)
    if parent is not None:
        below = next(other for other in recipes() if other.name == parent[1])
        yield from _copies(below, path.parent / f"{below.name}.yaml")


def _moved(text: str, name: str, path: Path) -> str:
    """Return text with the new place of an experiment instead of the old one."""
    return text.replace(f"configs/experiments/{name}.yaml", str(path))
