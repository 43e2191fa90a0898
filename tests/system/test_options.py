"""Settings of training that only show in a whole run: precision, ZeRO, stopping, keeping."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_seq.errors import EXIT_DIVERGED
from tests.system.commands import REPOSITORY
from tests.system.forked import command, train
from tests.system.runs import NO_VALIDATION, TINY, Lab, checkpoints, losses, records

TINY_TRAINING = (*TINY, *NO_VALIDATION, "train.log_every=1")
BY_LOSS = ("validation={metrics: [], best: loss}",)


def _zero(stage: int) -> str:
    return f"train.deepspeed={REPOSITORY}/configs/ds_config/zero{stage}.json"


def test_fp16_lowers_its_loss_scale_and_trains(lab: Lab, tmp_path: Path) -> None:
    file, folder = tmp_path / "ds.json", tmp_path / "run"
    fp16 = {"initial_scale_power": 22, "hysteresis": 1}
    file.write_text(json.dumps({"zero_optimization": {"stage": 1}, "fp16": fp16}))
    more = ("train.precision=fp16", f"train.deepspeed={file}", f"run_dir={folder}")
    length = ("train.max_updates=12", "scheduler.warmup_updates=2", "train.max_tokens=500")
    train(lab.moe, *TINY_TRAINING, *more, *length, ranks=2)[0].check()
    lines = records(folder)
    assert lines[0]["skipped_updates"] == 1 and lines[0]["grad_norm"] is None
    assert 1 <= lines[-1]["skipped_updates"] <= 8
    assert lines[-1]["loss_scale"] == 2.0 ** (22 - lines[-1]["skipped_updates"])
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.1


def test_a_hopeless_fp16_run_ends_with_advice(lab: Lab, tmp_path: Path) -> None:
    fp16 = {"initial_scale_power": 32, "min_loss_scale": 2**31, "hysteresis": 1}
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 1}, "fp16": fp16}))
    more = ("train.precision=fp16", f"train.deepspeed={file}", f"run_dir={tmp_path / 'run'}")
    first, second = train(lab.moe, *TINY_TRAINING, *more, ranks=2)
    assert (first.code, second.code) == (EXIT_DIVERGED, EXIT_DIVERGED)
    assert "fp16: gradients overflow even at loss scale" in first.err
    assert "ds-seq: error" not in second.err and "Traceback" not in first.err + second.err


@pytest.mark.parametrize(("kind", "ranks"), [("dense", 1), ("moe", 2)])
def test_bf16_trains(lab: Lab, tmp_path: Path, kind: str, ranks: int) -> None:
    more = ("train.precision=bf16", "train.max_updates=6", f"run_dir={tmp_path}")
    train(lab.folder / f"{kind}.yaml", *TINY_TRAINING, *more, ranks=ranks)[0].check()
    found = losses(tmp_path)
    assert found[6] < found[1]


@pytest.fixture(scope="module")
def five_sentences(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Settings of data whose validation split is five sentences."""
    folder = tmp_path_factory.mktemp("five")
    for language in ("en", "de"):
        lines = lab.text(f"valid.{language}").read_text().splitlines()[:5]
        (folder / f"valid.{language}").write_text("\n".join(lines) + "\n")
    sides = f"{{source: {folder}/valid.en, target: {folder}/valid.de}}"
    settings = (f"data.dir={folder}/data", f"data.raw.valid={sides}")
    command("prepare", lab.dense, *settings)[0].check()
    return settings


def test_zero_3_with_spread_experts_validates_on_uneven_shares(
    lab: Lab, five_sentences: tuple[str, ...], tmp_path: Path
) -> None:
    more = (_zero(3), "train.validate_every=2", "train.max_updates=2", "train.max_sentences=1")
    short = ("generation.max_len_a=0", "generation.max_len_b=8")
    train(lab.moe, *TINY, *short, *five_sentences, *more, f"run_dir={tmp_path}", ranks=2)[0].check()
    (valid,) = records(tmp_path, "valid")
    assert valid["sentences"] == 5 and 0.0 <= valid["bleu"] <= 100.0
    assert valid["samples"].count("translation") == 5


def test_patience_ends_a_run(lab: Lab, tmp_path: Path) -> None:
    hopeless = ("optimizer.lr=1e-12", "train.validate_every=1", "train.patience=2")
    finished = train(lab.dense, *TINY, *hopeless, *BY_LOSS, f"run_dir={tmp_path}")[0].check()
    validations = [line["loss"] for line in records(tmp_path, "valid")]
    assert f"stopped at update {len(validations)} (patience)" in finished.err
    best = min(range(len(validations)), key=validations.__getitem__)
    assert len(validations) == best + 1 + 2


def test_max_hours_ends_a_run_with_a_checkpoint(lab: Lab, tmp_path: Path) -> None:
    more = ("train.max_hours=1e-9", f"run_dir={tmp_path}")
    first, second = train(lab.moe, *TINY_TRAINING, *more, ranks=2)
    assert "stopped at update 1 (max_hours)" in first.check().err
    assert second.check().err.count("stopped") == 0
    assert checkpoints(tmp_path) == [1]


def test_max_epochs_ends_a_run_at_the_end_of_the_data(lab: Lab, tmp_path: Path) -> None:
    more = ("train.max_epochs=2", f"run_dir={tmp_path}")
    finished = train(lab.moe, *TINY_TRAINING, *more, ranks=2)[0].check()
    lines = records(tmp_path)
    assert f"stopped at update {len(lines)} (max_epochs)" in finished.err
    pairs = sum(line["sentences"] for line in lines)
    assert pairs == 2 * 2000, "every pair once an epoch"


def test_the_sanity_validation_leaves_no_trace(lab: Lab, tmp_path: Path) -> None:
    found = []
    for batches in (0, 2):
        folder = tmp_path / str(batches)
        more = ("train.log_every=1", "train.validate_every=3", "train.max_updates=3")
        rehearsal = f"train.sanity_validation_batches={batches}"
        train(lab.dense, *TINY, *more, rehearsal, f"run_dir={folder}")[0].check()
        valid = [(line["update"], line["loss"]) for line in records(folder, "valid")]
        index = (folder / "checkpoints" / "index.json").read_text()
        found.append((losses(folder), valid, checkpoints(folder), index))
    assert found[0] == found[1]
    assert found[0][1][0][0] == 3


def test_the_last_and_the_best_checkpoints_are_kept(lab: Lab, tmp_path: Path) -> None:
    # the learning rate explodes after three updates, so that an early state is the best one
    explode = ("scheduler={name: linear, warmup_updates: 3, end_lr: 5}",)
    more = ("train.validate_every=1", "train.max_updates=7", "train.keep_last=2")
    train(lab.dense, *TINY, *explode, *more, *BY_LOSS, f"run_dir={tmp_path}")[0].check()
    valid = {line["update"]: line["loss"] for line in records(tmp_path, "valid")}
    best = min(valid, key=lambda update: valid[update])
    assert best < 6, "the test means the best one not to be among the last"
    assert checkpoints(tmp_path) == [best, 6, 7]
    index = json.loads((tmp_path / "checkpoints" / "index.json").read_text())
    assert [entry["name"] for entry in index["best"]] == [f"update_{best:08d}"]
    assert [entry["name"] for entry in index["last"]] == ["update_00000006", "update_00000007"]


def test_a_diverged_run_says_so_and_keeps_its_checkpoint(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    diverge = ("optimizer={name: sgd, lr: 1000}", "scheduler={name: constant}", "train.clip_norm=0")
    arguments = (lab.moe, *TINY_TRAINING, *diverge, f"run_dir={folder}")
    first, second = train(*arguments, ranks=2)
    assert (first.code, second.code) == (EXIT_DIVERGED, EXIT_DIVERGED)
    skipped = "updates were skipped because gradients were not finite"
    assert first.err.count("ds-seq: error: ") == first.err.count(skipped) == 1
    assert "ds-seq: error" not in second.err


def test_a_diverged_validation_is_no_checkpoint(lab: Lab, tmp_path: Path) -> None:
    diverge = ("scheduler={name: linear, warmup_updates: 3, end_lr: 1000}", "train.max_updates=7")
    # weights of this size overflow in fp16
    more = ("train.validate_every=1", "train.precision=fp16", f"run_dir={tmp_path}")
    finished = train(lab.dense, *TINY, *diverge, *more, *BY_LOSS)[0]
    assert finished.code == EXIT_DIVERGED
    assert "ds-seq: error: the validation loss is nan at update" in finished.err
    assert max(checkpoints(tmp_path)) == max(line["update"] for line in records(tmp_path, "valid"))


def test_distillation_follows_its_teacher(lab: Lab, dense_run: Path, tmp_path: Path) -> None:
    criterion = f"criterion={{name: distillation, teacher: {dense_run}, kd_weight: 1}}"
    more = (*TINY_TRAINING, "train.max_updates=10")
    train(lab.dense, *more, criterion, f"run_dir={tmp_path / 'student'}")[0].check()
    lines = records(tmp_path / "student")
    assert 0 < lines[-1]["kd"] < lines[0]["kd"]
    for line in lines:
        assert line["loss"] == pytest.approx(line["ce"] + line["kd"], rel=1e-5)


def test_a_teacher_with_other_subwords_is_refused(
    lab: Lab, dense_run: Path, tmp_path: Path
) -> None:
    data = f"data.dir={tmp_path}/data"
    command("prepare", lab.dense, data, "data.vocab.size=200")[0].check()
    criterion = f"criterion={{name: distillation, teacher: {dense_run}}}"
    settings = (*TINY, data, "data.vocab.size=200", criterion)
    finished = train(lab.dense, *settings, f"run_dir={tmp_path / 'student'}")[0]
    assert finished.code == 2
    assert "words can only be distilled with one vocabulary" in finished.err
    assert not (tmp_path / "student").exists()
