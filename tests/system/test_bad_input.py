"""Every mistake gets one clear line and exit code 2, and costs nothing that was there before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.vocabulary import train_vocab
from tests.system.commands import Finished, deepspeed, run
from tests.system.forked import command, generate, train
from tests.system.runs import NO_VALIDATION, TINY, Lab, snapshot

SETTINGS = (*TINY, *NO_VALIDATION, "train.max_updates=2")


NONE_LEFT = "none of its checkpoints can be resumed from; --overwrite starts over"


def assert_refused(finished: Finished, *expected: str) -> None:
    """One line that says what is wrong; no traceback, exit code 2."""
    assert finished.code == 2, finished
    lines = [line for line in finished.err.splitlines() if line.startswith("ds-seq: error: ")]
    assert len(lines) == 1, finished.err
    for part in expected:
        assert part in lines[0]
    assert "Traceback" not in finished.err


@pytest.fixture(scope="module")
def small_run(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two updates on two ranks, which is read-only."""
    folder = tmp_path_factory.mktemp("small")
    train(lab.moe, *SETTINGS, f"run_dir={folder}", ranks=2)[0].check()
    return folder


@pytest.fixture
def copied_run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(small_run, tmp_path / "copy"))


def _refused_training(lab: Lab, folder: Path, *arguments: str | Path, ranks: int = 1) -> Finished:
    """A training that must fail and leave the run folder as it was."""
    before = snapshot(folder)
    finished, *others = train(*arguments, f"run_dir={folder}", ranks=ranks)
    assert snapshot(folder) == before
    for other in others:
        assert other.code == 2 and "ds-seq: error" not in other.err
    return finished


OVERRIDES = [
    ("model.d_modell=3", ("model.d_modell", "d_model")),
    ("train.zero_optimization={stage: 1}", ("train.zero_optimization", "DeepSpeed")),
    ("data.dir=/nowhere/data", ("/nowhere/data",)),
    ("model.moe.num_experts=3", ("train.expert_parallel", "3")),
    ("model.moe=null", ("train.expert_parallel", "dense")),
    ("optimizer.name=adamm", ("optimizer", "adamm")),
    ("criterion.loss_weights={gate: 1}", ("gate", "load_balance")),
    ("train.deepspeed=nowhere.json", ("train.deepspeed", "nowhere.json")),
]


@pytest.mark.parametrize(("override", "expected"), OVERRIDES)
def test_a_wrong_setting(
    lab: Lab, copied_run: Path, override: str, expected: tuple[str, ...]
) -> None:
    finished = _refused_training(
        lab, copied_run, lab.moe, *SETTINGS, override, "--overwrite", ranks=2
    )
    assert_refused(finished, *expected)


DEEPSPEED_FILES: list[tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = [
    ({"zero_optimisation": {"stage": 1}}, (), ("zero_optimisation", "zero_optimization")),
    ({"zero_optimization": {"stag": 1}}, (), ("zero_optimization.stag", "stage")),
    ({"gradient_clipping": 1.0}, (), ("gradient_clipping", "train.clip_norm")),
    (
        {"zero_optimization": {"stage": 0}},
        ("train.precision=fp16",),
        ("zero_optimization.stage", "stage 1, 2 or 3"),
    ),
]


@pytest.mark.parametrize(("content", "more", "expected"), DEEPSPEED_FILES)
def test_a_wrong_deepspeed_file(
    lab: Lab,
    tmp_path: Path,
    content: dict[str, Any],
    more: tuple[str, ...],
    expected: tuple[str, ...],
) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(content))
    settings = (*SETTINGS, f"train.deepspeed={file}", *more)
    finished = _refused_training(lab, tmp_path / "run", lab.moe, *settings, ranks=2)
    assert_refused(finished, str(file), *expected)
    assert not (tmp_path / "run").exists()


def test_a_world_that_expert_parallelism_does_not_divide(lab: Lab, tmp_path: Path) -> None:
    finished = _refused_training(lab, tmp_path / "run", lab.moe, *SETTINGS)
    assert_refused(finished, "train.expert_parallel", "world size 1")


@pytest.mark.slow  # forked ranks end in the same way, above
def test_no_rank_hangs_under_a_launcher_and_one_speaks(lab: Lab, tmp_path: Path) -> None:
    settings = (*SETTINGS, "data.dir=/nowhere", f"run_dir={tmp_path}/run")
    assert_refused(run(deepspeed("train", lab.moe, *settings), timeout=60), "/nowhere")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _other_vocabulary(data: Path, lab: Lab) -> None:
    other = data.with_name("other")
    command("prepare", lab.dense, f"data.dir={other}", "data.vocab.size=200")[0].check()
    shutil.copyfile(other / "vocab.model", data / "vocab.model")


DAMAGES: list[tuple[Callable[[Path, Lab], object], str]] = [
    (lambda data, lab: _truncate(data / "train.0000.tgt.bin"), "train.0000.tgt.bin"),
    (lambda data, lab: (data / "valid.manifest.json").unlink(), "valid.manifest.json"),
    (_other_vocabulary, "vocab"),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGES)
def test_damaged_data(
    lab: Lab, copied_run: Path, tmp_path: Path, damage: Callable[[Path, Lab], object], expected: str
) -> None:
    data = Path(shutil.copytree(lab.folder / "data", tmp_path / "data"))
    damage(data, lab)
    settings = (*SETTINGS, f"data.dir={data}", "train.validate_every=2", "--overwrite")
    finished = _refused_training(lab, copied_run, lab.moe, *settings, ranks=2)
    assert_refused(finished, expected)


def test_missing_validation_text(lab: Lab, copied_run: Path) -> None:
    missing = "data.raw.valid={source: nowhere.en, target: nowhere.de}"
    settings = (*SETTINGS, "train.validate_every=2", missing, "--overwrite")
    finished = _refused_training(lab, copied_run, lab.moe, *settings, ranks=2)
    assert_refused(finished, "nowhere.en", "no such file")


def test_a_run_folder_that_is_taken(lab: Lab, copied_run: Path) -> None:
    finished = _refused_training(lab, copied_run, lab.moe, *SETTINGS, ranks=2)
    assert_refused(finished, str(copied_run), "--resume", "--overwrite")


def test_a_run_folder_that_cannot_be_made(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    more = (f"run_dir={tmp_path}/file/run", "train.expert_parallel=1")
    assert_refused(train(lab.moe, *SETTINGS, *more)[0], f"{tmp_path}/file/run")


FOREIGN = [
    (("model.d_model=32",), "another model"),
    (("model.moe=null", "train.expert_parallel=1"), "another model"),
    (("optimizer={name: sgd, lr: 0.1}",), "optimizer.name=sgd"),
]


@pytest.mark.parametrize(("more", "expected"), FOREIGN)
def test_resuming_another_experiment(
    lab: Lab, copied_run: Path, more: tuple[str, ...], expected: str
) -> None:
    settings = (*SETTINGS, *more, "--resume")
    finished = _refused_training(lab, copied_run, lab.moe, *settings, ranks=2)
    assert_refused(finished, str(copied_run), expected)


def test_resuming_with_other_subwords(lab: Lab, copied_run: Path, tmp_path: Path) -> None:
    data = f"data.dir={tmp_path}/data"
    command("prepare", lab.dense, data, "data.vocab.size=200")[0].check()
    settings = (*SETTINGS, data, "data.vocab.size=200", "--resume")
    finished = _refused_training(lab, copied_run, lab.moe, *settings, ranks=2)
    assert_refused(finished, str(copied_run), "vocabulary")


@pytest.mark.parametrize("name", ["weights.1.safetensors", "optimizer.0.safetensors"])
def test_resuming_a_damaged_checkpoint(lab: Lab, copied_run: Path, name: str) -> None:
    _truncate(copied_run / "checkpoints" / "update_00000002" / name)
    finished = _refused_training(lab, copied_run, lab.moe, *SETTINGS, "--resume", ranks=2)
    assert_refused(finished, name, "truncated", NONE_LEFT)


def test_a_checkpoint_that_lost_its_description(lab: Lab, copied_run: Path) -> None:
    (copied_run / "checkpoints" / "update_00000002" / "checkpoint.json").write_text("{}")
    finished = _refused_training(lab, copied_run, lab.moe, *SETTINGS, "--resume", ranks=2)
    assert_refused(finished, "checkpoint.json", "damaged", NONE_LEFT)


def test_resume_and_overwrite_together(lab: Lab, copied_run: Path) -> None:
    both = ("--resume", "--overwrite")
    finished = _refused_training(lab, copied_run, lab.moe, *SETTINGS, *both, ranks=2)
    assert_refused(finished, "--resume and --overwrite")


def test_generating_from_nowhere(lab: Lab, tmp_path: Path) -> None:
    finished = generate(tmp_path / "nowhere", "--input", lab.text("test.en"))[0]
    assert_refused(finished, f"{tmp_path / 'nowhere'}", "no such run folder")


def test_generating_from_a_run_without_a_checkpoint(lab: Lab, copied_run: Path) -> None:
    shutil.rmtree(copied_run / "checkpoints")
    finished = generate(copied_run, "--input", lab.text("test.en"))[0]
    assert_refused(finished, "no finished checkpoint")


def test_generating_with_another_vocabulary(lab: Lab, copied_run: Path) -> None:
    """It has as many words, so that the weights would fit."""
    sides = [lab.text("train.en"), lab.text("train.de"), lab.text("train.de")]
    old = SentencePieceTokenizer.load(copied_run / "vocab.model")
    new = train_vocab(sides, copied_run / "vocab.model", len(old), "bpe")
    assert len(new) == len(old) and new.fingerprint != old.fingerprint
    finished = generate(copied_run, "--input", lab.text("test.en"))[0]
    assert_refused(
        finished, str(copied_run / "vocab.model"), "was trained with", old.fingerprint[:12]
    )


def test_generating_from_invalid_utf8(small_run: Path, tmp_path: Path) -> None:
    bad, out = tmp_path / "bad.en", tmp_path / "out.de"
    bad.write_bytes(b"the man sees two red books today\nthe \xff woman\n")
    out.write_text("what was there before\n")
    finished, other = generate(small_run, "--input", bad, "--output", out, ranks=2)
    assert_refused(finished, f"{bad}: line 2", "UTF-8")
    assert other.code == 2 and not other.err
    assert out.read_text() == "what was there before\n"


def test_an_empty_line_and_a_line_of_5000_words_are_translated(
    small_run: Path, tmp_path: Path
) -> None:
    odd, out = tmp_path / "odd.en", tmp_path / "out.de"
    odd.write_text("\n" + "books " * 5000 + "\nthe man sees two red books today\n")
    arguments = ("--input", odd, "--output", out, "--expert-parallel", "2")
    finished = generate(small_run, *arguments, ranks=2)[0].check()
    lines = out.read_text().split("\n")
    assert len(lines) == 4 and lines[0] == "" and lines[3] == ""
    assert "1 sentence(s) longer than the model can take were cut; line(s) 2" in finished.err
