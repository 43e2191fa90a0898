"""`ds-seq make-student` on trained models: the student translates and continues to learn."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.system.commands import Finished
from tests.system.forked import command, generate, train
from tests.system.runs import NO_VALIDATION, Lab, losses, records

_BRIEF = (*NO_VALIDATION, "train.log_every=1", "train.tensorboard=false", "model.dropout=0")


def _translated(lab: Lab, student: Path, folder: Path) -> list[str]:
    """Its translation of the test text, by the real command."""
    output = folder / "translation"
    sides = ("--input", lab.text("test.en"), "--reference", lab.text("test.de"))
    finished = generate(student, *sides, "--output", output)[0].check()
    assert "BLEU" in finished.out + finished.err
    return output.read_text().splitlines()


def _tuned(student: Path, folder: Path, *settings: str, ranks: int = 1) -> Finished:
    """Two updates of the experiment next to the student."""
    experiment = student / "config.yaml"
    more = (*_BRIEF, *settings, "train.max_updates=2", f"run_dir={folder}")
    return train(experiment, *more, ranks=ranks)[0].check()


@pytest.mark.timeout(240)
def test_a_student_of_a_dense_run(lab: Lab, dense_run: Path, tmp_path: Path) -> None:
    student = tmp_path / "student"
    made = command("make-student", dense_run, "--out", student, "--decoder-layers", "1")[0].check()
    assert re.search(r"decoder +layers 0 +of 2", made.out)
    assert len(_translated(lab, student, tmp_path)) == 100
    tuned = _tuned(student, tmp_path / "tuned")
    assert f"starting with the weights of {student}" in tuned.err
    train(lab.dense, *_BRIEF, "train.max_updates=1", f"run_dir={tmp_path / 'fresh'}")[0].check()
    found, fresh = losses(tmp_path / "tuned"), losses(tmp_path / "fresh")
    assert list(found) == [1, 2] and found[1] < fresh[1] / 2
    command("generate", tmp_path / "tuned", "--input", lab.text("test.en"))[0].check()


@pytest.mark.timeout(240)
def test_a_student_of_all_layers_starts_where_its_teacher_is(
    lab: Lab, moe_run: Path, tmp_path: Path
) -> None:
    student, file = tmp_path / "student", tmp_path / "student.safetensors"
    for out in (student, file):
        command("make-student", moe_run, "--out", out, "--encoder-copy", "0,1")[0].check()
    theirs, ours, files = (_translated(lab, run, tmp_path) for run in (moe_run, student, file))
    assert ours == theirs == files
    _tuned(student, tmp_path / "tuned", ranks=2)  # as the teacher's expert_parallel requires
    start = (f"train.init_from={moe_run}", "train.max_updates=1", f"run_dir={tmp_path / 'again'}")
    train(lab.moe, *_BRIEF, *start, ranks=2)[0].check()
    first = [records(tmp_path / name)[0]["ce"] for name in ("tuned", "again")]
    assert first[0] == pytest.approx(first[1], rel=1e-6)


@pytest.mark.timeout(240)
def test_students_of_a_run_with_experts(lab: Lab, moe_run: Path, tmp_path: Path) -> None:
    sparse, dense = tmp_path / "sparse", tmp_path / "dense"
    lists = ("--encoder-copy", "1", "--decoder-copy", "1,0")
    made = command("make-student", moe_run, "--out", sparse, *lists)[0].check()
    assert "deepspeed --num_gpus 2 ds_seq/train.py" in made.out
    measured = ("--dense", "--data", lab.folder / "data", "--max-tokens-measured", "2000")
    made = command("make-student", moe_run, "--out", dense, *lists, *measured)[0].check()
    assert re.search(r"encoder\.layers\.1\.feed_forward( +[\d.]+%){4}", made.out)
    assert f"ds-seq train {dense}/config.yaml" in made.out
    for student, ranks in ((sparse, 2), (dense, 1)):
        assert len(_translated(lab, student, tmp_path)) == 100
        tuned = tmp_path / f"{student.name}-tuned"
        _tuned(student, tuned, ranks=ranks)
        assert list(losses(tuned)) == [1, 2]
