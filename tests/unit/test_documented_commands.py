"""The commands and settings that documents show are understood by the commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_seq.commands import COMMANDS
from ds_seq.config.schema import ANY_NAME, sections

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    *(ROOT / folder / "README.md" for folder in ("", "launch", "prepare_data")),
    *sorted((ROOT / "docs").glob("*.md")),
)
BLOCK = re.compile(r"^```(bash|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:\bds-seq |-m ds_seq |ds_seq/(?=train|generate))(.*)")
REDIRECTION = re.compile(r" [|>]|;|&&")
OVERRIDE = re.compile(r"([a-z_]+(?:\.\w+)+)=")
SETTINGS = {section.path_of(name) for section in sections() for name in section.config.model_fields}


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Yield the file name and the text of each block of code in the documents."""
    for document in DOCUMENTS:
        for found, text in BLOCK.findall(document.read_text(encoding="utf-8")):
            if found == language:
                yield str(document.relative_to(ROOT)), text


def shown_commands() -> Iterator[tuple[str, str, list[str]]]:
    """Yield file, name and arguments of each command of ds_seq in blocks of shell code."""
    for document, block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            found = COMMAND.search(line)
            if found is not None:
                name, *arguments = shlex.split(REDIRECTION.split(found[1])[0], comments=True)
                yield document, name.removesuffix(".py"), arguments


def shown_experiments() -> Iterator[tuple[str, Any]]:
    """Yield file and content of each piece of an experiment; lines of `moe:` are one piece each."""
    for document, block in blocks("yaml"):
        if block.startswith("moe:"):
            yield from ((document, {"model": yaml.safe_load(line)}) for line in block.splitlines())
        else:
            yield document, yaml.safe_load(block)


def paths(settings: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the dotted paths of all values of an experiment file."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from paths(value, (*path, str(key)))
    elif path:
        yield ".".join(path)


def is_setting(path: str) -> bool:
    """Whether an experiment may have a value at a path; names of one's own are allowed."""
    parts = path.split(".")
    starts = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    named = [re.sub(r"^((?:\w+\.){2})[^.]+", rf"\1{ANY_NAME}", path)] if len(parts) > 2 else []
    known = next((start for start in (path, *named, *starts[1:]) if start in SETTINGS), None)
    # what is below a known path is the user's own if the schema does not go deeper there
    return known is not None and (
        known in (path, *named) or not any(item.startswith(f"{known}.") for item in SETTINGS)
    )


COMMANDS_SHOWN = tuple(shown_commands())


@pytest.mark.parametrize(
    ("document", "name", "arguments"),
    COMMANDS_SHOWN,
    ids=[f"{document}-{name}" for document, name, _ in COMMANDS_SHOWN],
)
def test_a_documented_command_is_understood(document: str, name: str, arguments: list[str]) -> None:
    command = COMMANDS[name]
    assert command.arguments is not None
    own = arguments[: arguments.index("--")] if command.wraps else arguments
    import_module(command.arguments).build_parser().parse_intermixed_args(own)
    for argument in own:
        override = OVERRIDE.match(argument)
        assert override is None or is_setting(override[1]), argument


def test_documented_settings_exist() -> None:
    unknown = [
        (document, path)
        for document, settings in shown_experiments()
        for path in paths(settings)
        if not is_setting(path)
    ]
    assert unknown == []


def test_both_tests_see_what_they_are_for() -> None:
    assert len(COMMANDS_SHOWN) > 50
    assert is_setting("model.d_model") and is_setting("data.corpora.mine.weight")
    assert not is_setting("model.width") and not is_setting("data.corpora.mine.wait")
