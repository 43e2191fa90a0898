"""The container file: its sources are sent to the builder, and what it builds works."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.commands import REPOSITORY

DOCKERFILE = REPOSITORY / "docker" / "Dockerfile"
TOOLS = ("buildah", "debootstrap")
MIRROR = "http://deb.debian.org/debian"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
SETTING = re.compile(r"(?:global|:env:)\.([\w-]+)='(.*)'")


def instructions() -> list[tuple[str, str]]:
    """Each instruction and its arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    found = (line.split(maxsplit=1) for line in lines if line.strip())
    return [(name, rest) for name, rest in found]


def is_sent(name: str) -> bool:
    """Whether the builder gets a file of the checkout; the last rule that fits decides."""
    sent = True
    for rule in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = rule.removeprefix("!").removeprefix("**/")
        fits = fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name.split("/")[0], pattern)
        if rule and not rule.startswith("#") and fits:
            sent = rule.startswith("!")
    return sent


def test_what_is_copied_exists_and_is_sent() -> None:
    stages: set[str] = set()
    for name, arguments in instructions():
        if name == "FROM":
            assert arguments.split()[0] in {"${BASE}", *stages}
            stages.add(arguments.split()[-1])
        elif name == "COPY" and "--from=" in arguments:
            assert arguments.split()[0].removeprefix("--from=") in stages
        elif name == "COPY":
            *sources, _ = arguments.split()
            assert all((REPOSITORY / source).exists() for source in sources)
            assert all(source == "." or is_sent(source.rstrip("/")) for source in sources)
    assert is_sent("ds_seq/modules/native.c") and not is_sent("ds_seq/modules/_native.x.so")
    assert not any(
        map(is_sent, ("data/x", "runs/x", ".git/config", "tests/conftest.py", ".venv/x"))
    )


def test_the_image_runs_ds_seq_without_root() -> None:
    last = {name: arguments for name, arguments in instructions() if name != "RUN"}
    entries = [arguments for name, arguments in instructions() if name == "ENTRYPOINT"]
    assert entries[0] == '["ds-seq"]' and last["FROM"] == "runtime"
    assert last["USER"] == "user" and "/health" in last["HEALTHCHECK"]


def pip_mounts(folder: Path) -> list[str]:
    """Options that give a build the indexes of pip, wheels and certificates of this machine."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings = dict(SETTING.findall(listed))
    (folder / "pip.conf").write_text(
        "[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
    )
    words = [word.removeprefix("file://") for value in settings.values() for word in value.split()]
    named = [word.removesuffix("/simple") for word in words]  # of an index, next to its files
    paths = {str(Path(name)) for name in [*named, CERTIFICATES] if Path(name).is_absolute()}
    mounts = [f"--volume={path}:{path}:ro" for path in sorted(paths) if Path(path).exists()]
    return [*mounts, f"--volume={folder / 'pip.conf'}:/etc/pip.conf:ro"]


class Builder:
    """Buildah with its storage in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._options = ["--root", str(folder / "storage"), "--runroot", str(folder / "run")]

    def __call__(self, *arguments: str, timeout: float = 3000) -> str:
        command = ["buildah", *self._options, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Builder, str]]:
    """The image for CPUs, built on a Debian that needs no registry of images."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root, {' and '.join(TOOLS)}; missing: {', '.join(missing) or 'root'}")
    folder = tmp_path_factory.mktemp("container")
    root = folder / "debian"
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", "bookworm", str(root), MIRROR], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"debootstrap cannot fetch Debian from {MIRROR}")
    build = Builder(folder)
    base = build("from", "scratch")
    build("add", "-q", base, str(root), "/")
    build("commit", "-q", base, "localhost/debian")
    ways = ["--pull-never", "--format=docker", "--isolation=chroot", "--network=host"]
    index = "--build-arg=TORCH_INDEX=https://pypi.org/simple"  # which pip can reach, as in tests
    what = ["--target=serve", "--build-arg=BASE=localhost/debian", index, "--tag=ds_seq"]
    files = ["--file", str(DOCKERFILE), str(REPOSITORY)]
    build("bud", *ways, *what, *pip_mounts(folder), *files)
    yield build, build("from", "ds_seq")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_builds_and_runs(image: tuple[Builder, str]) -> None:
    build, container = image

    def run(*command: str) -> str:
        return build("run", "--isolation=chroot", container, "--", *command)

    assert run("id", "-u") == "1000" and run("pwd") == "/experiments"
    assert "tiny_moe" in run("ds-seq", "recipes", "ls")
    code = "from ds_seq.modules.native import _library; print(_library() is not None)"
    assert run("python3", "-c", code) == "True"
    run("ds-seq", "recipes", "cp", "tiny_dense")
    assert "d_model: 128" in run("ds-seq", "check", "tiny_dense.yaml", "--elsewhere")
    assert "--port" in run("sh", "-c", 'PORT=8000; exec ds-seq serve "$@"', "x", "--help")
