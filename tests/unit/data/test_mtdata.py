"""The recipe that has mtdata make a folder, with a stand-in for mtdata's program."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from ds_seq.config.raw_text import SIGNATURE, raw_texts
from ds_seq.config.text_files import RawConfig
from ds_seq.errors import UserError, run_command
from tests.unit.data.scripts import load_script

COMMAND = "mtdata get -l deu-eng --train A-x-1-deu-eng --test B-y-2-deu-eng --merge -o <out-dir>\n"
Capture = pytest.CaptureFixture[str]

# mtdata needs the servers of its data sets. This writes what it writes, and where.
PROGRAM = """#!/bin/sh
printf '%s\\n' "$*" >> "$(dirname "$0")/calls"
for last; do :; done
mkdir -p "$last/train-parts" "$last/tests"
for code in deu eng; do
    echo "text $code $TEXT" > "$last/train.$code"
    echo "test $code" > "$last/tests/B.$code"
    ln -sf "tests/B.$code" "$last/test1.$code"
done
echo '{}' > "$last/train.stats.json"
"""


@pytest.fixture
def module() -> ModuleType:
    return load_script("fetch_mtdata")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program in PATH; returns the file of its arguments."""
    path = tmp_path / "bin/mtdata"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    return path.with_name("calls")


def test_a_signature_makes_its_folder_again(
    module: ModuleType,
    program: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    signature, out = tmp_path / SIGNATURE, tmp_path / "out"
    signature.write_text(f"mtdata get -l old\nmtdata version 0.4\n{COMMAND}mtdata version 0.5\n")
    for _ in range(2):
        assert run_command(module.main, [str(signature), str(out)]) == 0
    expected = COMMAND.strip().removeprefix("mtdata ").replace("<out-dir>", str(out))
    assert program.read_text().splitlines() == [expected, expected]
    sums = (out / "SHA256SUMS").read_text().splitlines()
    assert [line[66:] for line in sums] == ["test1.deu", "test1.eng", "train.deu", "train.eng"]
    (out / SIGNATURE).write_text(COMMAND)
    texts = raw_texts(RawConfig(folder=str(out)), "test", ("en", "de"))
    assert [Path(text.source).read_text() for text in texts] == ["test eng\n"]
    capsys.readouterr()
    monkeypatch.setenv("TEXT", "other")
    assert run_command(module.main, [str(signature), str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train.deu, train.eng differ from those of an earlier run" in line


def test_a_recipe_of_mtdata(module: ModuleType, program: Path, tmp_path: Path) -> None:
    assert run_command(module.main, ["wmt22-deen", str(tmp_path / "out")]) == 0
    assert program.read_text() == f"get-recipe -ri wmt22-deen -o {tmp_path / 'out'}\n"


def test_mistakes_are_one_line(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="mtdata is not installed; .*pip install mtdata"):
        module.main(["wmt22-deen", str(tmp_path / "out")])
    with pytest.raises(UserError, match=r"none\.txt: no such file; give a mtdata.signature"):
        module.main([str(tmp_path / "none.txt"), str(tmp_path / "out")])
    (tmp_path / "x.txt").write_text("something else\n")
    with pytest.raises(UserError, match=r"x\.txt: has no line `mtdata get \.\.\.`; is it a"):
        module.main([str(tmp_path / "x.txt"), str(tmp_path / "out")])
    (tmp_path / "mtdata").symlink_to(sys.executable)
    with pytest.raises(UserError, match="mtdata has failed with exit code "):
        module.main(["wmt22-deen", str(tmp_path / "out")])
