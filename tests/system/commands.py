"""Run the program as users do, in separate processes, and leave none behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]

from tests.ports import free_port

REPOSITORY = Path(__file__).parents[2]
_BIN = Path(sys.executable).parent


class Finished(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str

    def check(self) -> Finished:
        """Insist on success; returns self."""
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        return self


class Running:
    """A command on its way, as `started` gives it."""

    def __init__(
        self, command: Sequence[str | Path], folder: Path, environ: Mapping[str, str]
    ) -> None:
        self._command = [str(word) for word in command]
        self._files = [folder / "out", folder / "err"]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self._process = subprocess.Popen(
                self._command, env=_environ(environ), stdout=out, stderr=err, text=True
            )
        self.pid = self._process.pid

    def wait(self, timeout: float) -> Finished:
        """Wait for the end.

        Raises:
            AssertionError: the time is up.
        """
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{' '.join(self._command)}: no end within {timeout:g} s\n{self._texts()}"
            ) from None
        return Finished(code, *self._texts())

    def wait_until(self, condition: Callable[[], bool], timeout: float) -> None:
        """Wait for something to happen while the command runs."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self._process.poll() is None, f"ended too early\n{self._texts()}"
            assert time.monotonic() < deadline, f"waited {timeout:g} s in vain\n{self._texts()}"
            time.sleep(0.05)

    def workers(self, script: str) -> list[psutil.Process]:
        """The processes below this one that run ``script`` under Python."""
        everyone = psutil.Process(self.pid).children(recursive=True)
        return [
            process
            for process in everyone
            if any(word.endswith(script) for word in process.cmdline()[:4])
            and not any(child in everyone for child in process.children())
        ]

    def end(self) -> None:
        """Kill all remaining processes, including those that left the process group."""
        try:
            family = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(family, timeout=5)

    def _texts(self) -> tuple[str, str]:
        out, err = (file.read_text(errors="replace") for file in self._files)
        return out, err


@contextmanager
def started(
    command: Sequence[str | Path], environ: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Start ``command``; at the end of the block nothing of it is left."""
    with tempfile.TemporaryDirectory() as folder:
        running = Running(command, Path(folder), environ or {})
        try:
            yield running
        finally:
            running.end()


def run(
    command: Sequence[str | Path], timeout: float, environ: Mapping[str, str] | None = None
) -> Finished:
    """Run ``command`` to its end."""
    with started(command, environ) as running:
        return running.wait(timeout)


def ds_seq(*arguments: str | Path) -> list[str | Path]:
    """The command ``ds-seq ARGUMENTS`` in this interpreter."""
    return [sys.executable, "-m", "ds_seq", *arguments]


def script(name: str) -> Path:
    """Path of ``ds_seq/<name>.py``, which launchers start as a script."""
    return REPOSITORY / "ds_seq" / f"{name}.py"


def deepspeed(name: str, *arguments: str | Path) -> list[str | Path]:
    """Two processes under DeepSpeed's launcher."""
    port = str(free_port())
    launcher = (sys.executable, _BIN / "deepspeed", "--quiet", "--num_gpus", "2")
    return [*launcher, "--master_port", port, script(name), *arguments]


def torchrun(name: str, *arguments: str | Path) -> list[str | Path]:
    """Two processes under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    return [*launcher, "--master_port", str(free_port()), script(name), *arguments]


def mpirun(name: str, *arguments: str | Path) -> list[str | Path]:
    """Two processes under Open MPI, also on a machine that says it has one core."""
    launcher = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    return [*launcher, sys.executable, script(name), *arguments]


def _environ(more: Mapping[str, str]) -> dict[str, str]:
    """This environment, on the CPU, with the repository and the interpreter's tools first."""
    paths = {
        "PYTHONPATH": [str(REPOSITORY), os.environ.get("PYTHONPATH", "")],
        "PATH": [str(_BIN), os.environ.get("PATH", "")],
    }
    joined = {name: os.pathsep.join(filter(None, parts)) for name, parts in paths.items()}
    on_cpu = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **joined, **on_cpu, **more}
