"""The rule for relative paths, the same for every file that an experiment file names.

A path is relative to the working folder, as on a command line. A file that does not exist there is
looked for in the folder of the experiment file that names it, then in the two folders above, so
that a project with its files works from any folder. What a run writes (`data.dir`, `run_dir`) is
always relative to the working folder. Only the parent of an experiment file (`extends`) is looked
for next to the file first: the two are written together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from os.path import exists, isfile, samefile
from pathlib import Path
from typing import Any

from ds_seq.config.clean import FILES
from ds_seq.errors import UserError

_ANY = "*"
TEXT_KEYS = dict.fromkeys(
    ("source", "target", "text", "tsv", "jsonl", "tmx", "xml", "folder", "alignments"), ""
)
"""Keys of a raw text, or of a named corpus, whose values are paths."""
_CHANGES = dict.fromkeys(FILES, "")
_CLEAN = {**_CHANGES, "pairs": {_ANY: _CHANGES}}
_FAIRSEQ = {"dictionary": "", "codes": "", "sentencepiece": ""}
_VOCAB = {"normalization": ".tsv", "fairseq": _FAIRSEQ, "huggingface": {"path": ""}}
_CRITERION = {"teacher": "", "cache": ""}
_INPUTS = {
    "data": {
        "source": {"folders": ""},
        "raw": {"": "", "folder": "", "train": TEXT_KEYS, "valid": TEXT_KEYS, "test": TEXT_KEYS},
        "corpora": {_ANY: {**TEXT_KEYS, "clean": _CLEAN}},
        "clean": _CLEAN,
        "vocab": {**_VOCAB, "source": _VOCAB, "target": _VOCAB},
    },
    "model": {"path": "", "encoder_input": {"path": ""}},
    "criterion": {**_CRITERION, "base": _CRITERION},
    "train": {"deepspeed": "", "init_from": ""},
    "generation": {"lm": "", "shortlist": ""},
}
"""Keys whose values are paths of files that a run reads: those that end with the given suffix.

`_ANY` stands for every key. With the key "", the section may be a path itself.
"""


def find_near(name: str, file: Path, on_command_line: bool = False) -> str:
    """Return where a file that `file` names is, or `name` itself if it is nowhere.

    Args:
        name: path as written; absolute, or relative as described above.
        file: experiment file that contains it.
        on_command_line: whether it was given besides the file instead, where only the working
            folder can be meant if there is such a file.

    Raises:
        UserError: two different files are meant: one here and one in the folder of `file`.
    """
    here, folder = Path(name), file.absolute().parent
    neighbor = folder / name
    if exists(here):
        if not on_command_line and exists(neighbor) and not samefile(neighbor, here):
            raise UserError(
                f"{file}: {name} is a file of the working folder, but also {neighbor}; write the "
                "whole path of the one that is meant"
            )
        return name
    places = (neighbor, *(parent / name for parent in folder.parents[:2]))
    return next((str(place) for place in places if exists(place)), name)


def find_parent(name: str, file: Path) -> Path:
    """Return the file that `extends: name` in `file` means, whether or not it exists."""
    neighbor = file.parent / name
    return neighbor if isfile(neighbor) else Path(find_near(name, file))


def resolved(settings: dict[str, Any], file: Path, on_command_line: bool = False) -> dict[str, Any]:
    """Return settings with the paths of all files that they name resolved.

    Values that are no text are left to the schema, which refuses them.

    Args:
        settings: content of the file, or overrides; not modified.
        file: the file.
        on_command_line: whether they are overrides.

    Raises:
        UserError: see `find_near`.
    """

    locate = partial(find_near, file=file, on_command_line=on_command_line)

    def follow(value: Any, keys: Any) -> Any:
        if keys is None:
            return value
        if isinstance(keys, str):
            return _found(value, keys, locate)
        if isinstance(value, str) and "" in keys:
            return _found(value, keys[""], locate)
        if isinstance(value, list):
            return [follow(item, keys) for item in value]
        if not isinstance(value, dict):
            return value
        rest = keys.get(_ANY)
        return {key: follow(below, keys.get(key, rest)) for key, below in value.items()}

    return {**settings, **follow(settings, _INPUTS)}


def _found(value: Any, suffix: str, locate: Callable[[str], str]) -> Any:
    """Return a path, or each of several ones, where it is found."""
    if isinstance(value, list):
        return [_found(item, suffix, locate) for item in value]
    if not isinstance(value, str) or not value or not value.endswith(suffix):
        return value
    if ":" in value and not exists(value):  # several folders in one text
        return ":".join(_found(part, suffix, locate) for part in value.split(":"))
    return locate(value)
