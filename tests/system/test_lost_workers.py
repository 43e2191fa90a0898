"""A process that dies or is stopped while data are prepared: named in time, and nothing is lost."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.data.vocabulary import train_vocab
from tests.system.commands import REPOSITORY, Running, ds_seq, started

_PAIRS = 400_000
_MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "3"]
_EXPERIMENT = """\
name: toy
data:
  {{source_lang: en, target_lang: de, dir: {folder}/data,
    raw: {{train: {{source: {folder}/text.en, target: {folder}/text.de}}}}, vocab: {{size: 200}}}}
train: {{validate_every: null, save_every: 100}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text that takes some seconds, a vocabulary, and an experiment."""
    folder = tmp_path_factory.mktemp("text")
    for side, word in (("en", "house"), ("de", "Haus")):
        lines = (
            f"{word} {number:x} of {number * 7919 % 9973} {word}s\n" for number in range(_PAIRS)
        )
        (folder / f"text.{side}").write_text("".join(lines))
    train_vocab(
        [folder / "text.en", folder / "text.de"],
        folder / "data" / "vocab.model",
        200,
        input_sentence_size=5000,
    )
    (folder / "toy.yaml").write_text(_EXPERIMENT.format(folder=folder))
    return folder


def _command(folder: Path, name: str) -> tuple[list[str | Path], str]:
    """Return a command, and what matches its first finished block or part."""
    text: list[str | Path] = [folder / "text.en", folder / "text.de"]
    script = REPOSITORY / "prepare_data" / f"{name}.py"
    if name == "clean":
        out = ["--out-source", folder / "out.en", "--out-target", folder / "out.de"]
        return [sys.executable, script, *text, *out], "out.en.partial/*.index"
    if name == "binarize":
        options = ["--split", "train", "--languages", "en", "de", "--out", folder / "shards"]
        vocab = ["--vocab", folder / "data" / "vocab.model"]
        return [sys.executable, script, *text, *vocab, *options], "shards/.train.parts/*.part"
    return ds_seq("prepare", folder / "toy.yaml"), "data/.train.parts/*.part"


def _processes(running: Running, under_mpirun: bool) -> list[psutil.Process]:
    """Return the workers, or the ranks but the first."""
    family = psutil.Process(running.pid).children(recursive=True)
    if not under_mpirun:
        return list(family)
    ranks = [(process.environ().get("OMPI_COMM_WORLD_RANK", "0"), process) for process in family]
    return [process for rank, process in ranks if rank != "0"]


@pytest.mark.slow
@pytest.mark.mpirun
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
@pytest.mark.parametrize("under_mpirun", [False, True], ids=["processes", "mpirun"])
@pytest.mark.parametrize("name", ["prepare", "binarize", "clean"])
def test_a_lost_process_is_named_and_its_work_goes_on(
    folder: Path, name: str, under_mpirun: bool, number: signal.Signals
) -> None:
    command, finished = _command(folder, name)
    workers: list[str | Path] = ["data.workers=2"] if name == "prepare" else ["--workers", "2"]
    with started([*_MPIRUN, *command] if under_mpirun else [*command, *workers]) as running:
        running.wait_until(
            lambda: any(path.stat().st_size for path in folder.glob(finished)), timeout=60
        )
        family = psutil.Process(running.pid).children(recursive=True)
        lost = _processes(running, under_mpirun)[-1]
        lost.send_signal(number)
        begin = time.monotonic()
        done = running.wait(70)
        took = time.monotonic() - begin
        _, left = psutil.wait_procs(family, timeout=5)
    assert not left and took < 60
    assert "Traceback" not in done.err
    if number == signal.SIGKILL and under_mpirun:  # mpirun ends all ranks
        assert done.code == 137 and "process rank 2" in done.err
    else:
        assert done.code == 2 and done.err.count("ds-seq: error: ") == 1
        assert f"process {lost.pid})" in done.err
    kept = {path: path.stat().st_mtime_ns for path in folder.glob(finished)}
    assert kept
    with started(command) as again:
        again.wait_until(lambda: True, timeout=1)
        assert all(path.stat().st_mtime_ns == at for path, at in kept.items() if path.exists())
        again.wait(120).check()
    out = {"clean": "out.en", "binarize": "shards/train.lengths", "prepare": "data/train.lengths"}
    made = folder / out[name]
    assert made.stat().st_size > _PAIRS and not any(folder.glob(finished))
    for path in (made.parent).glob("*"):  # the next one begins anew
        if path.is_file() and path.name.startswith(("out.", "train.")):
            path.unlink()
    print(f"{name}, {number.name}, {'mpirun' if under_mpirun else 'processes'}: {took:.1f} s")
