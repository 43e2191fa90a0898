"""Finding a plug-in by name."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest

from ds_seq.errors import UserError
from ds_seq.plugins import find_plugin, import_object, nearest

TABLE = {"cross_entropy": 1, "distillation": 2}


@pytest.fixture
def plugin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_names_of_the_table() -> None:
    assert find_plugin("criterion", "distillation", TABLE) == 2


def test_an_unknown_name_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(UserError) as caught:
        find_plugin("criterion", "cross_entropi", TABLE)
    message = str(caught.value)
    assert message.startswith("criterion.name: no criterion 'cross_entropi'")
    assert "did you mean 'cross_entropy'?" in message
    assert "cross_entropy, distillation" in message


def test_an_external_name_is_imported() -> None:
    assert find_plugin("criterion", "collections:OrderedDict", {}) is OrderedDict


def test_a_module_of_the_users_own(plugin_folder: Path) -> None:
    (plugin_folder / "my_lab").mkdir()
    (plugin_folder / "my_lab" / "losses.py").write_text("class Focal: pass\n")
    assert import_object("criterion", "my_lab.losses:Focal").__name__ == "Focal"
    with pytest.raises(UserError, match=r"has no 'Focl' \(did you mean 'Focal'\?\)"):
        import_object("criterion", "my_lab.losses:Focl")
    with pytest.raises(UserError, match=r"no module 'my_lab\.lossez'"):
        import_object("criterion", "my_lab.lossez:Focal")


def test_a_missing_module_is_a_mistake_of_the_user() -> None:
    with pytest.raises(UserError, match="no module 'no_such_package'; install it"):
        import_object("model", "no_such_package.sub:Name")


def test_an_error_inside_the_module_is_not_hidden(plugin_folder: Path) -> None:
    (plugin_folder / "needs_more.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        import_object("model", "needs_more:Name")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("distilation", " (did you mean 'distillation'?)"), ("zzz", "")],
)
def test_nearest(name: str, hint: str) -> None:
    assert nearest(name, TABLE) == hint
