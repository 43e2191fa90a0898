"""A student learns from a teacher, live or from its cache, with the commands that users give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from safetensors import safe_open

from ds_seq.runs.open import load_run, open_run
from ds_seq.surgery.upcycle import transfer
from tests.system.commands import Finished
from tests.system.forked import command, kill_when, train
from tests.system.runs import NO_VALIDATION, TINY, Lab, forget_vocab, losses, records, snapshot
from tests.system.test_bad_input import assert_refused

STUDENT = (*TINY, "name=student", "train.max_updates=4", "train.log_every=1")
VALIDATED = ("train.validate_every=2", "validation={metrics: [], best: loss}")
DISTIL = "criterion.name=distillation"
ZERO3 = Path(__file__).parents[2] / "configs" / "ds_config" / "zero3.json"
PART = "400"
"""Target tokens of a part: the training split has some 80 of them."""


def cache_command(lab: Lab, run: Path, folder: Path) -> list[str | Path]:
    arguments = ["--data", str(lab.folder / "data"), "--top-k", "8", "--precision", "fp32"]
    return ["teacher-cache", run, *arguments, "--part-tokens", PART, "--out", folder]


@pytest.fixture(scope="module")
def cache(lab: Lab, dense_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of both splits, written by two ranks; not to be written to."""
    folder = tmp_path_factory.mktemp("cached") / "cache"
    first, _ = command(*cache_command(lab, dense_run, folder), ranks=2)
    assert f"criterion.cache={folder}" in first.check().err
    return folder


def tensor_names(run: Path) -> set[str]:
    """All tensors of all files of the last checkpoint."""
    checkpoint = max(run.glob("checkpoints/update_*"))
    names: set[str] = set()
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(str(path), framework="pt") as file:
            names |= set(file.keys())
    return names


def test_student_learns_from_a_live_teacher_and_leaves_no_trace_of_it(
    lab: Lab, dense_run: Path, tmp_path: Path
) -> None:
    before = snapshot(dense_run)
    with_teacher, without = tmp_path / "with", tmp_path / "without"
    distil = (DISTIL, f"criterion.teacher={dense_run}")
    (told,) = train(lab.dense, *STUDENT, *VALIDATED, *distil, f"run_dir={with_teacher}")
    train(lab.dense, *STUDENT, *NO_VALIDATION, f"run_dir={without}")[0].check()
    (line,) = [x for x in told.check().err.splitlines() if x.startswith("teacher ")]
    assert str(dense_run) in line
    assert snapshot(dense_run) == before
    assert tensor_names(with_teacher) == tensor_names(without)
    (first, *_), validated = records(with_teacher), records(with_teacher, "valid")
    assert first["kd"] > 0.1 and len(validated) >= 2 and validated[0]["kd"] > 0.1


def test_a_cache_teaches_what_the_live_teacher_does(
    lab: Lab, dense_run: Path, cache: Path, tmp_path: Path
) -> None:
    teachers = {
        "live": (f"criterion.teacher={dense_run}", "criterion.top_k=8"),
        "cached": (f"criterion.cache={cache}",),
    }
    figures = {}
    for name, teacher in teachers.items():
        run = tmp_path / name
        train(lab.dense, *STUDENT, *VALIDATED, DISTIL, *teacher, f"run_dir={run}")[0].check()
        figures[name] = [
            [line[part] for part in ("loss", "kd", "ce")]
            for kind in ("train", "valid")
            for line in records(run, kind)
        ]
    assert len(figures["live"]) >= 6
    for live, cached in zip(figures["live"], figures["cached"], strict=True):
        assert cached == pytest.approx(live, rel=1e-4)


def test_an_ensemble_spread_over_ranks_teaches_as_its_members_on_one(
    lab: Lab, dense_run: Path, tmp_path: Path
) -> None:
    ours = (*STUDENT, *NO_VALIDATION, DISTIL, "model.dropout=0")
    alone = (f"criterion.teacher={dense_run}", "train.accumulate=2", f"run_dir={tmp_path / 'one'}")
    train(lab.dense, *ours, *alone)[0].check()
    twice = (f"criterion.teacher=[{dense_run}, {dense_run}]", "criterion.teacher_zero3=true")
    train(lab.dense, *ours, *twice, f"run_dir={tmp_path / 'two'}", ranks=2)[0].check()
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 4 and two == pytest.approx(one, rel=1e-4)


def test_a_narrower_student_learns_hidden_states_through_a_projection(
    lab: Lab, dense_run: Path, tmp_path: Path
) -> None:
    ours = (*STUDENT, *NO_VALIDATION, "model.dropout=0", DISTIL, f"criterion.teacher={dense_run}")
    ours = (*ours, "criterion.hidden={projection: learned}")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    alone = ("train.accumulate=2", f"run_dir={whole}")
    train(lab.dense, *ours, *alone)[0].check()
    # two ranks under ZeRO 3, then one
    spread = (*ours, f"run_dir={parts}", "train.max_updates=2", f"train.deepspeed={ZERO3}")
    (first, _) = train(lab.dense, *spread, ranks=2)
    assert "hidden.projection: 2,048 parameters" in first.check().err
    train(lab.dense, *ours, f"run_dir={parts}", "train.accumulate=2", "--resume")[0].check()
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)
    assert {name for name in tensor_names(whole) if "projection" in name} == {
        f"{kind}hidden_projection.maps.{stack}.weight"
        for kind in ("", "exp_avg/", "exp_avg_sq/")
        for stack in ("encoder", "decoder")
    }
    # whoever reads the student does not see it
    stored = open_run(whole, "last")
    assert not [name for name in stored.weights.keys() if "projection" in name]  # noqa: SIM118
    size = stored.model_config.num_params(*stored.tokenizers.sizes[::-1])
    assert size is not None and stored.weights.num_values() == size.total
    transfer(load_run(whole, "last").model, stored.weights, noise=0.0)


def test_a_killed_cache_resumes(lab: Lab, dense_run: Path, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    arguments = cache_command(lab, dense_run, folder)
    kill_when(lambda: len(list(folder.glob("train.*.bin"))) >= 3, *arguments, "--max-tokens", "60")
    done = {path: path.stat().st_mtime_ns for path in folder.glob("train.*.bin")}
    assert not list(folder.glob("*.teacher.json"))
    student = (*STUDENT, *NO_VALIDATION, DISTIL, f"criterion.cache={folder}")
    (refused,) = train(lab.dense, *student, f"run_dir={tmp_path / 'run'}")
    assert_refused(refused, str(folder), "not finished")
    for finished in command(*arguments, ranks=2):
        finished.check()
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    assert len(done) < len(list(folder.glob("train.*.bin")))
    names = {path.name for path in cache.iterdir()}
    assert {path.name for path in folder.iterdir()} == names
    train(lab.dense, *student, f"run_dir={tmp_path / 'run'}")[0].check()


def _truncate(cache: Path) -> None:
    path = cache / "train.teacher.00003.bin"
    path.write_bytes(path.read_bytes()[:-1])


def _without_valid(cache: Path) -> None:
    (cache / "valid.teacher.json").unlink()


def _of_two_teachers(cache: Path) -> None:
    path = cache / "valid.teacher.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["teachers"][0]["weights"] = "another"
    path.write_text(json.dumps(manifest), encoding="utf-8")


def _of_other_shards(cache: Path) -> None:
    path = cache / "train.teacher.json"
    manifest = json.loads(path.read_text())
    manifest["source"] = "0" * len(manifest["source"])
    path.write_text(json.dumps(manifest))


def _of_other_words(cache: Path) -> None:
    path = cache / "train.teacher.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_hash": "0" * 64}))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_truncate, ["train.teacher.00003.bin: has", "bytes in place of"]),
        (_without_valid, ["lacks split 'valid'", "ds-seq teacher-cache", "--splits valid"]),
        (_of_two_teachers, ["train and valid were made with different teachers"]),
        (_of_other_shards, ["train.teacher.json", "other shards", "ds-seq teacher-cache"]),
        (_of_other_words, ["train.teacher.json", "vocabulary 000000000000"]),
        (shutil.rmtree, ["no such cache", "ds-seq teacher-cache"]),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(
    lab: Lab, cache: Path, tmp_path: Path, damage: Callable[[Path], None], expected: Sequence[str]
) -> None:
    copy = Path(shutil.copytree(cache, tmp_path / "cache"))
    damage(copy)
    given = (*STUDENT, *VALIDATED, DISTIL, f"criterion.cache={copy}", f"run_dir={tmp_path / 'run'}")
    assert_refused(_only(train(lab.dense, *given)), *expected)
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_does_not_fit_is_refused(lab: Lab, dense_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(dense_run, other)
    with (other / "vocab.model").open("ab") as file:
        # an unknown field at the end of the model: other bytes, another hash
        file.write(b"\xa2\x06\x01x")
    forget_vocab(other)
    cases = [
        (["criterion.teacher=/nowhere/run"], ["/nowhere/run: no such run folder"]),
        ([f"criterion.teacher={other}"], [f"teacher {other}: has vocabulary"]),
        ([f"criterion.teacher={dense_run}", "criterion.hidden={}"], ["d_model 64", "16"]),
        ([f"criterion.teacher={dense_run}", "criterion.teacher_expert_parallel=2"], ["2 ranks"]),
    ]
    for arguments, expected in cases:
        given = (*STUDENT, *NO_VALIDATION, DISTIL, *arguments, f"run_dir={tmp_path / 'run'}")
        assert_refused(_only(train(lab.dense, *given)), *expected)
        assert not (tmp_path / "run").exists()


def _only(finished: Sequence[Finished]) -> Finished:
    (one,) = finished
    return one
