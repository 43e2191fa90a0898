"""`ds-seq prepare` after kills and damage, on a full disk, and two at a time."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ds_seq import files
from ds_seq.cli import main
from ds_seq.tasks import vocab as vocab_step


@pytest.mark.parametrize("is_written", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("has_old", [False, True], ids=["first", "again"])
def test_a_vocabulary_is_its_own_after_a_kill(
    experiment: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    is_written: bool,
    has_old: bool,
) -> None:
    """Killed just before or after the file is written, it is not taken for the user's."""
    if has_old:
        assert main(["prepare", str(experiment), "data.vocab.size=110"]) == 0
    save = vocab_step.save_tokenizer

    def die(*arguments: object) -> None:
        if is_written:
            save(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vocab_step, "save_tokenizer", die)
        assert main(["prepare", str(experiment)]) == 130
    capsys.readouterr()
    for size in (120, 115):
        assert main(["prepare", str(experiment), f"data.vocab.size={size}"]) == 0
        output = capsys.readouterr().out
        assert f"vocabulary: {size} subwords ->" in output and "copied there" not in output


def test_damaged_files_are_made_again(experiment: Path, tmp_path: Path) -> None:
    assert main(["prepare", str(experiment)]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    names = ("train.0000.tgt.bin", "valid.lengths", "clean/train.de", "clean/test.json")
    for name in names:
        path = tmp_path / "data" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert main(["verify", str(tmp_path / "data")]) == 2
    assert main(["prepare", str(experiment)]) == 0
    after = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert after == before
    assert main(["verify", str(tmp_path / "data")]) == 0


def test_a_damaged_record_of_the_vocabulary_is_written_again(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(experiment)]) == 0
    record = tmp_path / "data" / "vocab.json"
    whole = record.read_text()
    record.write_text(whole.replace("{", "[", 1))
    assert main(["prepare", str(experiment)]) == 0
    assert record.read_text() == whole
    assert "copied there" not in capsys.readouterr().out
    vocab = tmp_path / "data" / "vocab.model"
    record.write_text(whole.replace("{", "[", 1))
    assert main(["prepare", str(experiment), "data.vocab.size=115"]) == 0
    assert "(120 subwords), which was copied there" in capsys.readouterr().out
    assert vocab.is_file() and not record.exists()
    assert main(["verify", str(tmp_path / "data")]) == 0


def test_another_vocabulary_than_it_had_made_is_told(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user may have replaced it, or it is damaged: only the user can tell."""
    other = tmp_path / "other" / "vocab.model"
    for options in ([], ["data.vocab.size=115", f"data.dir={other.parent}"]):
        assert main(["prepare", str(experiment), *options]) == 0
    shutil.copy(other, tmp_path / "data" / "vocab.model")
    for record in (True, False):
        capsys.readouterr()
        assert main(["prepare", str(experiment)]) == 0
        output = capsys.readouterr().out
        assert "(115 subwords), which was copied there" in output
        assert ("had made another vocabulary there" in output) is record
        (tmp_path / "data" / "vocab.json").unlink(missing_ok=True)


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Let every file end like on a full disk, at this size."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize(
    ("options", "size", "file"),
    [
        (["data.clean.max_words=99"], 2000, "clean/train."),
        (["data.vocab.size=110"], 1000, "vocab.model"),
        (["data.shard_size=150"], 3000, "data"),
        (["--force"], 100, ".lock"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    experiment: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    size: int,
    file: str,
) -> None:
    folder = tmp_path / "data"
    assert main(["prepare", str(experiment)]) == 0
    capsys.readouterr()
    with _largest_file(size):
        assert main(["prepare", str(experiment), *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert file in error and "cannot be written: File too large" in error
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
    assert main(["prepare", str(experiment)]) == 0
    assert main(["verify", str(folder)]) == 0


def test_one_at_a_time(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    with files.Lock(folder / files.LOCK_FILE, folder, ""):
        assert main(["prepare", str(experiment)]) == 2
    assert "data: another process is writing to it" in capsys.readouterr().err
    assert not folder.exists()


def test_verify_data_finds_damage_in_any_file(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    assert main(["prepare", str(experiment)]) == 0
    capsys.readouterr()
    assert main(["verify-data", str(folder)]) == 0
    assert "vocab.model: ok (is the vocabulary of the shards)" in capsys.readouterr().out
    written = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(written) > 20
    for path in written:
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 3] ^= 1 << len(content) % 8
        for damaged in (bytes(flipped), content[:-1]):
            path.write_bytes(damaged)
            found = path.stem if "clean" in path.parts else path.name
            assert main(["verify-data", str(folder)]) == 2, path
            error = capsys.readouterr().err
            assert found in error and "Traceback" not in error
        path.write_bytes(content)
