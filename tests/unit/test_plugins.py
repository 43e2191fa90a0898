"""Finding a plug-in by name."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ds_seq.errors import UserError, run_command
from ds_seq.plugins import find_plugin, import_object, is_trusted, nearest, trust, trusting

TABLE = {"cross_entropy": 1, "distillation": 2}


def imported(name: str) -> Any:
    """What a trusted name refers to."""
    with trusting([name]):
        return import_object(name, "model.name")


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
    with trusting(["collections:OrderedDict"]):
        assert find_plugin("criterion", "collections:OrderedDict", {}) is OrderedDict


def test_a_module_of_the_users_own(plugin_folder: Path) -> None:
    (plugin_folder / "my_lab").mkdir()
    (plugin_folder / "my_lab" / "losses.py").write_text("class Focal: pass\n")
    assert imported("my_lab.losses:Focal").__name__ == "Focal"
    with pytest.raises(UserError, match=r"has no 'Focl' \(did you mean 'Focal'\?\)"):
        imported("my_lab.losses:Focl")
    with pytest.raises(UserError, match=r"no module 'my_lab\.lossez'"):
        imported("my_lab.lossez:Focal")


def test_a_missing_module_is_a_mistake_of_the_user() -> None:
    with pytest.raises(UserError, match="no module 'no_such_package'; install it"):
        imported("no_such_package.sub:Name")


def test_an_error_inside_the_module_is_not_hidden(plugin_folder: Path) -> None:
    (plugin_folder / "needs_more.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        imported("needs_more:Name")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("distilation", " (did you mean 'distillation'?)"), ("zzz", "")],
)
def test_nearest(name: str, hint: str) -> None:
    assert nearest(name, TABLE) == hint


def test_untrusted_code_is_named_and_not_run(plugin_folder: Path) -> None:
    (plugin_folder / "evil").mkdir()
    (plugin_folder / "evil" / "__init__.py").write_text("raise SystemExit('it has run')\n")
    (plugin_folder / "evil" / "model.py").write_text("raise SystemExit('it has run')\n")
    with pytest.raises(UserError) as caught:
        import_object("evil.model:Best", "model.name")
    message = str(caught.value)
    assert message.startswith("model.name: 'evil.model:Best' is code from outside ds_seq")
    assert str(plugin_folder / "evil" / "model.py") in message
    assert message.count("\n") == 0 and "--trust evil.model:Best" in message
    assert not {"evil", "evil.model"} & set(sys.modules)


@pytest.mark.parametrize(
    "name", ["os:system", "builtins:exec", "sys:exit", "ds_seq.cli:main", "no.such:Thing", "a..b:c"]
)
def test_no_name_is_trusted_by_itself(name: str) -> None:
    with pytest.raises(UserError, match="was not run"):
        import_object(name, "x")
    with trusting([f"{name}s", "os:path"]), pytest.raises(UserError, match="was not run"):
        find_plugin("criterion", name, {})


def test_trust_ends_with_the_block_and_with_the_command() -> None:
    with trusting("os:getcwd"), trusting(["os:cpu_count"]):
        assert is_trusted("os:getcwd") and is_trusted("os:cpu_count")
    assert not is_trusted("os:getcwd")

    def command(argv: Sequence[str]) -> int:
        trust(argv)
        return int(not is_trusted("os:getcwd"))

    assert run_command(command, ["os:getcwd"]) == 0
    assert not is_trusted("os:getcwd")


@pytest.mark.parametrize("name", ["os", "os:", ":system", "os.system", "os:system\n", "*:*", ""])
def test_only_whole_names_can_be_trusted(name: str) -> None:
    with pytest.raises(UserError, match="give the exact"):
        trust([name])
