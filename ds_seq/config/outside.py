"""Names of code from outside ds_seq in an experiment, and which of them an action runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ds_seq.config.base import PLUGIN, Config
from ds_seq.config.yaml_file import KeyPath
from ds_seq.errors import UserError
from ds_seq.plugins import is_trusted, untrusted

Sections = Sequence[KeyPath]
"""Sections whose code from outside is run."""
LOADING: Sections = (("model",), ("data", "vocab"))
"""By loading a trained model."""
TOKENIZING: Sections = (("data", "vocab"),)
"""By making or reading a vocabulary."""
PREPARING: Sections = (*TOKENIZING, ("data", "clean"))
"""By making clean text, a vocabulary and shards."""
TRAINING: Sections = ((),)
"""By a training: everything."""


def outside_names(section: Config, at: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yield the path and the name of all code from outside ds_seq that a section names."""
    for key, field in type(section).model_fields.items():
        value = vars(section)[key]
        path = (*at, key)
        if isinstance(value, Config):
            yield from outside_names(value, path)
        elif PLUGIN in field.metadata and value is not None:
            if isinstance(value, str):
                found: list[tuple[KeyPath, str]] = [(path, value)]
            else:
                found = [((*path, index), name) for index, name in enumerate(value)]
            yield from ((where, name) for where, name in found if ":" in name)


def check_trusted(config: Config, runs: Sections, where: Callable[[KeyPath], str]) -> None:
    """Refuse an experiment with code from outside ds_seq that is about to run untrusted.

    Args:
        config: the experiment.
        runs: sections whose code is about to run.
        where: returns the place of a setting, for messages.

    Raises:
        UserError: names are not trusted; lists all of them, one per line.
    """
    refused = [
        untrusted(name, where(path))
        for path, name in outside_names(config)
        if not is_trusted(name) and any(path[: len(section)] == section for section in runs)
    ]
    if refused:
        raise UserError("\n".join(refused))
