"""`ds-seq verify`: what is intact, what is not, and what cannot be known."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ds_seq import files
from ds_seq.cli import main
from ds_seq.config.load import load_experiment
from ds_seq.data.alignments import links_block, writing_alignments
from ds_seq.data.shards import ShardReader, ShardWriter
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.runs.formats.ds_seq import open_tokenizers
from ds_seq.runs.open import load_run
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.text.vocab_file import save_tokenizers
from ds_seq.training.history import first_version
from ds_seq.weights.meta import VOCAB_HASH_KEY
from tests.unit.runs.made import experiment, write_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, vocab: SentencePieceTokenizer) -> Path:
    """A run without checksums, as earlier versions wrote it, two exports, and a data folder."""
    folder = tmp_path_factory.mktemp("made")
    config = experiment({"moe": {"num_experts": 2}})
    models = {n: build_model(config.model, len(vocab), 1, 0, seed=n) for n in (10, 20)}
    run = write_run(folder / "run", config, vocab, models)
    for out in ("export", "file.safetensors"):
        assert main(["export", str(run), "--out", str(folder / out)]) == 0
    options = {"vocab_hash": vocab.fingerprint, "vocab_size": len(vocab), "languages": ("en", "de")}
    data = folder / "data"
    with ShardWriter(data, "train", shard_size=9, **options) as writer:  # type: ignore[arg-type]
        for _ in range(20):
            writer.add([5, 6, 2], [7, 2])
    command = ["teacher-cache", str(run), "--data", str(data), "--top-k", "3"]
    assert main([*command, "--part-tokens", "15"]) == 0
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "made"))


def add_checksums(run: Path) -> None:
    """Add what this version records in its checkpoints: checksums, vocabulary, score."""
    vocab_hash = open_tokenizers(run).fingerprint
    for meta in run.glob("checkpoints/*/checkpoint.json"):
        content = json.loads(meta.read_text())
        content["sha256"] = {
            name: files.fingerprint(meta.parent / name) for name in content["files"]
        }
        content[VOCAB_HASH_KEY] = vocab_hash
        content["score"] = 2.0 if meta.parent.name == "update_00000010" else None
        meta.write_text(json.dumps(content))


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_whole_ones(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_checksums(copy / "run")
    paths = ["run", "run/checkpoints/update_00000020", "export", "file.safetensors", "data"]
    assert main(["verify", *(str(copy / path) for path in paths)]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.count(": ok (") == len(captured.out.splitlines())
    for name in ("update_00000010: ok (SHA-256", "index.json: ok (the last is update_00000020"):
        assert name in captured.out
    for name in ("train.manifest.json: ok (SHA-256 of 7", "train.teacher: ok (SHA-256 of all"):
        assert name in captured.out


def test_exports_have_the_mode_of_other_files(made: Path) -> None:
    (made / "other").touch()
    for path in (made / "file.safetensors", made / "export" / "model.safetensors"):
        assert path.stat().st_mode == (made / "other").stat().st_mode


def test_those_of_earlier_versions(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(made / "run")]) == 0
    assert capsys.readouterr().out.count("earlier version, without checksums") == 2


LAST = "run/checkpoints/update_00000020"


@pytest.mark.parametrize(
    ("path", "damaged", "message"),
    [
        ("run", f"{LAST}/weights.0.safetensors", "weights.0.safetensors: damaged"),
        (LAST, f"{LAST}/weights.0.safetensors", "weights.0.safetensors: damaged"),
        ("run", "run/vocab.model", "vocab.model: is vocabulary"),
        ("export", "export/config.yaml", "config.yaml: is not what was exported"),
        ("export", "export/model.safetensors", "model.safetensors: damaged"),
        ("file.safetensors", "file.safetensors", "file.safetensors: damaged"),
        ("data", "data/train.0001.src.bin", "train.0001.src.bin: its content has changed"),
        ("data", "data/teacher-run-top3/train.teacher.00001.bin", "00001.bin: its content has"),
    ],
)
def test_a_flipped_bit_is_found(
    copy: Path, capsys: pytest.CaptureFixture[str], path: str, damaged: str, message: str
) -> None:
    add_checksums(copy / "run")
    flip(copy / damaged)
    assert main(["verify", str(copy / path)]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_config_is_compared_with_what_the_run_was_trained_with(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = copy / "run" / "config.yaml"
    first_version(load_experiment(config), {}).write(copy / "run")
    assert main(["verify", str(copy / "run")]) == 0
    assert "config.yaml: ok (is the last version in history.json)" in capsys.readouterr().out
    text = config.read_text()
    config.write_text(text.replace("num_heads: 2", "num_heads: 4"))
    assert config.read_text() != text
    assert main(["verify", str(copy / "run")]) == 2
    error = capsys.readouterr().err
    assert "trained with (model.num_heads: 2 -> 4); change it back" in error
    assert error.count("\n") == 1


def test_a_folder_for_another_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("model.bin", "vocab.model"):
        (tmp_path / name).write_text(name)
    files.write_sums(tmp_path)
    subprocess.run(["sha256sum", "--check", files.SUMS_FILE], cwd=tmp_path, check=True)
    assert main(["verify", str(tmp_path)]) == 0
    assert "SHA-256 of 2 files is right" in capsys.readouterr().out
    changes: dict[str, Callable[[Path], object]] = {
        "content has changed": lambda path: flip(path / "model.bin"),
        "is missing": lambda path: (path / "model.bin").unlink(),
        ":1: is damaged": lambda path: flip(path / files.SUMS_FILE, 64),
        "a link to": lambda path: (path / "model.bin").symlink_to("/etc/passwd"),
    }
    for expected, change in changes.items():
        change(tmp_path)
        assert main(["verify", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1
        if expected == ":1: is damaged":
            flip(tmp_path / files.SUMS_FILE, 64)


def test_another_score_in_the_index(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_checksums(copy / "run")
    index = copy / "run" / "checkpoints" / "index.json"
    index.write_text(index.read_text().replace("2.0", "6.0"))
    assert main(["verify", str(copy / "run")]) == 2
    error = capsys.readouterr().err
    assert "update_00000010 has the score 6.0, but the checkpoint has 2.0" in error
    assert error.count("\n") == 1


REMOVED: dict[str, Callable[[Path], None]] = {
    "index": lambda run: (run / "checkpoints" / "index.json").unlink(),
    "weights": lambda run: (run / "checkpoints/update_00000010/weights.0.safetensors").unlink(),
    "best": lambda run: shutil.rmtree(run / "checkpoints/update_00000010"),
    "config": lambda run: (run / "config.yaml").write_text("model: ["),  # type: ignore[dict-item, return-value]
}


@pytest.mark.parametrize("remove", REMOVED.values(), ids=REMOVED)
def test_what_is_missing_is_found(
    copy: Path, capsys: pytest.CaptureFixture[str], remove: Callable[[Path], None]
) -> None:
    remove(copy / "run")
    assert main(["verify", str(copy / "run")]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nothing", "empty", "text"])
def test_what_is_nothing_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("")
    assert main(["verify", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / name) in error and error.count("\n") == 1


@pytest.mark.parametrize("place", [-1, 900, 40])
def test_a_damaged_export_is_not_loaded(copy: Path, place: int) -> None:
    """Tensors, config and vocabulary in the header, and the header itself."""
    load_run(copy / "file.safetensors", "best")
    flip(copy / "file.safetensors", place)
    with pytest.raises(UserError, match=r"file\.safetensors"):
        load_run(copy / "file.safetensors", "best")


def test_a_damaged_checkpoint_is_not_loaded(copy: Path) -> None:
    add_checksums(copy / "run")
    load_run(copy / "run", "last")
    flip(copy / LAST / "weights.0.safetensors")
    with pytest.raises(UserError, match=r"weights\.0\.safetensors: damaged: its content is not"):
        load_run(copy / "run", "last")


def test_a_damaged_part_of_a_cache_is_computed_again(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = copy / "data" / "teacher-run-top3" / "train.teacher.00001.bin"
    before = part.read_bytes()
    flip(part)
    command = ["teacher-cache", str(copy / "run"), "--data", str(copy / "data"), "--top-k", "3"]
    assert main([*command, "--part-tokens", "15"]) == 0
    assert "cached 14 target tokens" in capsys.readouterr().err
    assert part.read_bytes() == before
    assert main(["verify", str(copy / "data")]) == 0


def test_alignments_and_two_vocabularies_are_compared_with_the_shards(
    vocab: SentencePieceTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = vocab.to_bytes()
    other = SentencePieceTokenizer(content + b"\x22\x00", "other")  # an empty self-test
    options = {
        "vocab_hash": Tokenizers(vocab, other).fingerprint,
        "vocab_size": len(vocab),
        "languages": ("en", "de"),
    }
    with ShardWriter(tmp_path, "train", shard_size=9, **options) as writer:  # type: ignore[arg-type]
        writer.add([5, 6, 2], [7, 2])
    with writing_alignments(tmp_path, "train", ShardReader(tmp_path, "train")) as links:
        links.add(links_block([[(0, 0), (1, 0)]]))
    source, target = (tmp_path / f"vocab.{side}.model" for side in ("source", "target"))
    save_tokenizers(Tokenizers(vocab, other), tmp_path, joint=False)
    (tmp_path / "vocab.model").write_bytes(content)  # left over
    assert main(["verify", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"{source}: ok (is the vocabulary of the shards)" in printed
    assert "train.align.json: ok (SHA-256" in printed and f"{tmp_path}/vocab.model" not in printed
    for name in ("train.align.json", "train.align.idx", "train.align.bin"):
        path = tmp_path / name
        whole = path.read_bytes()
        for damaged in (bytes([whole[0] ^ 1]) + whole[1:], whole[:-1]):
            path.write_bytes(damaged)
            assert main(["verify", str(tmp_path)]) == 2, name
            assert name in capsys.readouterr().err
        path.write_bytes(whole)
    source.write_bytes(other.to_bytes())
    target.write_bytes(content)
    assert main(["verify", str(tmp_path)]) == 2
    assert "not the vocabulary that the shards were made with" in capsys.readouterr().err
