"""Ranks of an MPI job: the same bytes, a rank that hangs, and a launcher that mpi4py cannot see."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from ds_seq.data import clean as clean_module
from ds_seq.data.clean import clean_corpora
from ds_seq.data.mpi_watch import find_mpi
from ds_seq.errors import UserError, run_command
from ds_seq.text.lines import PairPath
from tests.unit.data.cleaning import rank_that_stops
from tests.unit.data.cleaning.made import EVERYTHING, corpus_in, make_text

ROOT = Path(__file__).parents[4]
SCRIPT = ROOT / "prepare_data" / "clean.py"
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable]


@pytest.mark.slow  # waits; tests/unit/data/test_processes.py has the same of worker processes
@pytest.mark.mpirun
@pytest.mark.timeout(120)
def test_a_hung_rank_is_named_and_others_go_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_text(tmp_path, 400)
    command = [*MPIRUN, "-m", rank_that_stops.__name__, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("ds-seq: error")]
    assert "rank 1 (" in error and "has given no sign of life" in error
    journals = list((tmp_path / "out.en.partial").glob("*.index"))
    assert len(journals) == 2 and all(path.stat().st_size for path in journals)
    assert not (tmp_path / "out.en").exists()

    monkeypatch.setattr(clean_module, "BLOCK_LINES", 40)
    corpus = corpus_in(tmp_path, **EVERYTHING)
    results = []
    for name in ("out", "whole"):  # one goes on, the other begins
        output = PairPath(tmp_path / f"{name}.en", tmp_path / f"{name}.de")
        report = clean_corpora([corpus], output).to_json()
        results.append((output.source.read_bytes(), output.target.read_bytes(), report))
    assert results[0] == results[1]


@pytest.mark.mpirun
@pytest.mark.timeout(120)
def test_ranks_write_what_one_process_writes(tmp_path: Path) -> None:
    make_text(tmp_path, 300)
    command = ["--set", "preset=mozilla", "--languages", "en", "de"]
    assert _main(tmp_path, *command, out="one") == 0
    command = [*MPIRUN, str(SCRIPT), *_arguments(tmp_path, "two"), *command]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for end in ("en", "de", "json", "txt"):
        one, two = (tmp_path / f"{name}.{end}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "max_rati=2"), "--set max_rati: unknown key (did you mean 'max_ratio'?)"),
        (("--set", "max_chars=x"), "--set max_chars: should be a whole number or null, not 'x'"),
        (("--set", "max_chars"), "--set max_chars: does not have the form KEY=VALUE"),
        (("--set", "min_score=1"), "--set min_score: needs a score of each pair; give score_files"),
        (("--set", "patterns=[no such]"), "--set patterns: should be"),
        (("--set", "patterns=nothing"), "nothing: no such file"),
        (("--set", "preset=mozilla"), "min_alphabet_words: give --languages SOURCE TARGET"),
        (("--set", "language_id=lingua", "--languages", "a", "b"), "lingua is not installed"),
        (("--set", "language_id=a.b:C", "--languages", "a", "b"), "code from outside ds_seq"),
    ],
)
def test_a_wrong_option_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    make_text(tmp_path, 3)
    before = sorted(tmp_path.iterdir())
    assert _main(tmp_path, *options, out="out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ds-seq: error: ") and message in line
    assert sorted(tmp_path.iterdir()) == before


def _arguments(folder: Path, name: str) -> list[str]:
    paths = {"--out-source": f"{name}.en", "--out-target": f"{name}.de", "--report": f"{name}.json"}
    options = [part for key, path in paths.items() for part in (key, str(folder / path))]
    return [str(folder / "text.en"), str(folder / "text.de"), *options]


def _main(folder: Path, *options: str, out: str) -> int:
    """Run `prepare_data/clean.py` in this process."""
    main = runpy.run_path(str(SCRIPT))["main"]
    return run_command(main, [*_arguments(folder, out), *options])


def test_one_process_is_alone() -> None:
    assert find_mpi({"OMPI_COMM_WORLD_SIZE": "1"}) is None
    assert find_mpi({"SLURM_STEP_NUM_TASKS": "4"}) is None, "without srun"


def test_an_mpi_that_sees_one_process_is_refused() -> None:
    with pytest.raises(UserError, match=r"started 4 processes, but mpi4py counts 1: .*--workers"):
        find_mpi({"PMI_SIZE": "4"})
