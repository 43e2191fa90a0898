"""The commands and settings that documents show are understood by the commands."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_seq.commands import COMMANDS
from ds_seq.commands.check import main as check
from ds_seq.config.schema import ANY_NAME, sections
from tests.documents import Block, blocks

COMMAND = re.compile(r"(?:\bds-seq |-m ds_seq |ds_seq/(?=train|generate))(.*)")
REDIRECTION = re.compile(r" [|>]|;|&&")
OVERRIDE = re.compile(r"([a-z_]+(?:\.\w+)+)=")
SETTINGS = {section.path_of(name) for section in sections() for name in section.config.model_fields}


def shown_commands() -> Iterator[tuple[str, str, list[str]]]:
    """Yield file, name and arguments of each command of ds_seq in blocks of shell code."""
    for block in blocks("bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            found = COMMAND.search(line)
            if found is not None:
                name, *arguments = shlex.split(REDIRECTION.split(found[1])[0], comments=True)
                yield block.document, name.removesuffix(".py"), arguments


def pieces(block: str) -> list[str]:
    """Split alternatives: lines of `moe:`, the section of `model`, and what `# or` separates."""
    if block.startswith("moe:"):
        return [f"model:\n  {line}\n" for line in block.splitlines()]
    return re.split(r"^# or\n", block, flags=re.MULTILINE)


def shown_experiments() -> Iterator[tuple[str, Any]]:
    """Yield file and content of each piece of an experiment."""
    for block in blocks("yaml"):
        for piece in pieces(block.text):
            yield block.document, yaml.safe_load(piece)


def paths(settings: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the dotted paths of all values of an experiment file."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from paths(value, (*path, str(key)))
    elif path:
        yield ".".join(path)


def is_setting(path: str) -> bool:
    """Whether an experiment may have a value at a path; names of one's own are allowed."""
    named = re.sub(r"^((?:\w+\.){2})[^.]+(?=\.)", rf"\1{ANY_NAME}", path)
    depth = path.count(".") + 1
    starts = (
        ".".join(spelling.split(".")[:length])
        for length in range(depth, 0, -1)
        for spelling in (path, named)
    )
    known = next((start for start in starts if start in SETTINGS), None)
    # what is below a known path is the user's own if the schema does not go deeper there
    return known is not None and (
        known in (path, named) or not any(item.startswith(f"{known}.") for item in SETTINGS)
    )


TRANSLATION = """\
name: piece
data:
  source_lang: en
  target_lang: de
  dir: data/x
  raw: {valid: {source: valid.en, target: valid.de}}
  vocab: {user_symbols: [<2de>]}
"""
LANGUAGE_MODEL = """\
name: piece
data: {language: en, dir: data/x}
task: {name: language_modeling}
model: {name: decoder_only}
"""
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


@pytest.mark.parametrize("block", list(blocks("yaml")), ids=lambda block: block.name)
def test_a_documented_experiment_passes_check(block: Block, tmp_path: Path) -> None:
    if block.not_run is not None:
        pytest.skip(block.not_run)
    language_model = "language_modeling" in block.text or "LANGUAGE_MODELS" in block.document
    base = LANGUAGE_MODEL if language_model else TRANSLATION
    (tmp_path / "base.yaml").write_text(base, encoding="utf-8")
    parent = "base"
    for number, piece in enumerate(pieces(block.text)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(f"extends: {parent}.yaml\n{piece}", encoding="utf-8")
        assert check([str(file), "--elsewhere"]) == 0
        parent = "base" if block.text.startswith("moe:") else "0"


def test_blocks_that_no_test_runs_are_known() -> None:
    languages = Counter(block.language for block in blocks())
    assert languages.keys() <= {"bash", "yaml", "python", "text"}
    unmarked = Counter(block.document for block in blocks() if block.not_run is not None)
    assert unmarked == {"docs/API.md": 1, "docs/HUGGING_FACE.md": 2, "docs/PRETRAINING.md": 1}


def test_both_tests_see_what_they_are_for() -> None:
    assert len(COMMANDS_SHOWN) > 50
    assert is_setting("model.d_model") and is_setting("data.corpora.mine.weight")
    assert not is_setting("model.width") and not is_setting("data.corpora.mine.wait")
