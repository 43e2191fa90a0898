"""What `pip install` brings, without a checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ds_seq.config.shipped import recipes
from tests.system.commands import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as a wheel of the repository has it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, check=True, capture_output=True,
    ).stdout.split(b"\0")[:-1]  # fmt: skip
    for name in (file.decode() for file in files):
        if (REPOSITORY / name).exists() and not name.startswith(("tests/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*pip, "-w", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "ds_seq", *arguments]
    done = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_the_recipes(installed: Path, tmp_path: Path) -> None:
    shown = run(installed, tmp_path, "recipes", "ls")
    assert all(recipe.name in shown for recipe in recipes())
    run(installed, tmp_path, "recipes", "cp", "tiny_retnet", "mine/my.yaml")
    assert (tmp_path / "mine" / "ds_config" / "zero1.json").is_file()
    assert "decoder_mixer" in run(installed, tmp_path, "check", "mine/my.yaml", "--elsewhere")
    path = installed / "ds_seq" / "configs" / "experiments" / "wmt16_en_de_moe.yaml"
    report = run(installed, tmp_path, "check", str(path), "--elsewhere", "--world", "8")
    assert "ds_seq/configs/ds_config/zero1.json" in report
