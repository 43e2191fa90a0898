"""A checkpoint written in one layout goes on in any other as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_seq.config.optim import AdafactorConfig, AdamConfig, SgdConfig
from ds_seq.errors import UserError
from ds_seq.interop.run_folder import find_checkpoint
from ds_seq.models.build import build_seq2seq
from ds_seq.models.weights import load_weights
from ds_seq.training.checkpoint import CheckpointStore
from tests.distributed import spine
from tests.distributed.harness import run_distributed

Steps = list[tuple[float, float, bool]]


def _save(folder: Path, stage: int, expert_parallel: int, options: dict[str, Any]) -> Steps:
    """Three updates, a save, three more; returns the last three."""
    engine = spine.make_engine(stage, expert_parallel, **options)
    spine.train(engine, range(3))
    CheckpointStore(folder / "checkpoints", 1, 1, True).save(engine, 3, {"update": 3}, None)
    return spine.train(engine, range(3, 6))


def _go_on(folder: Path, stage: int, expert_parallel: int, options: dict[str, Any]) -> Steps:
    path = find_checkpoint(folder, "last")
    engine = spine.make_engine(stage, expert_parallel, checkpoint=path, **options)
    return spine.train(engine, range(3, 6))


def _assert_close(ours: Steps, expected: Steps, tolerance: float) -> None:
    for (loss, norm, applied), (want, want_norm, want_applied) in zip(ours, expected, strict=True):
        assert loss == pytest.approx(want, rel=tolerance)
        assert norm == pytest.approx(want_norm, rel=10 * tolerance)
        assert applied == want_applied


CLIPPED: dict[str, Any] = {"clip": 0.5, "optimizer": AdamConfig(lr=0.003)}
# (world, expert_parallel, stage) that writes, and that reads
ROUTES = [
    ((2, 2, 1), (1, 1, 0)),
    ((2, 2, 1), (2, 2, 3)),
    ((2, 2, 3), (2, 1, 2)),
    ((1, 1, 0), (2, 2, 1)),
    ((2, 2, 0), (2, 2, 0)),
    ((2, 1, 2), (1, 1, 3)),
]


@pytest.mark.parametrize(("written", "read"), ROUTES)
def test_resuming_in_another_layout_is_exact(
    tmp_path: Path, written: tuple[int, int, int], read: tuple[int, int, int]
) -> None:
    world, expert_parallel, stage = written
    expected = run_distributed(_save, world, tmp_path, stage, expert_parallel, CLIPPED)[0]
    world, expert_parallel, stage = read
    resumed = run_distributed(_go_on, world, tmp_path, stage, expert_parallel, CLIPPED)[0]
    _assert_close(resumed, expected, 1e-4)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_half_precision_with_expert_parallelism_trains_and_resumes_exactly(
    tmp_path: Path, precision: str, stage: int
) -> None:
    options = {"precision": precision, "clip": 0.5, "optimizer": AdamConfig(lr=0.003)}
    expected = run_distributed(_save, 2, tmp_path, stage, 2, options)[0]
    assert all(loss == loss and loss < 10 for loss, _, _ in expected)
    resumed = run_distributed(_go_on, 2, tmp_path, stage, 2, options)[0]
    _assert_close(resumed, expected, 1e-4)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_without_zero(tmp_path: Path, precision: str) -> None:
    options = {"precision": precision, "clip": 0.5}
    expected = run_distributed(_save, 1, tmp_path, 0, 1, options)[0]
    resumed = run_distributed(_go_on, 1, tmp_path, 0, 1, options)[0]
    _assert_close(resumed, expected, 1e-4)


@pytest.mark.parametrize(
    ("optimizer", "stage"),
    [(SgdConfig(lr=0.1, momentum=0.9), 1), (SgdConfig(lr=0.1), 3), (AdafactorConfig(lr=0.01), 0)],
)
def test_other_optimizers_resume(tmp_path: Path, optimizer: Any, stage: int) -> None:
    options = {"optimizer": optimizer}
    expected = run_distributed(_save, 2, tmp_path, stage, 2, options)[0]
    resumed = run_distributed(_go_on, 2, tmp_path, stage, 2, options)[0]
    _assert_close(resumed, expected, 1e-4)


def test_offloaded_optimizer_resumes(tmp_path: Path) -> None:
    options = {**CLIPPED, "zero": {"offload_optimizer": {"device": "cpu"}}}
    expected = run_distributed(_save, 2, tmp_path, 2, 2, options)[0]
    resumed = run_distributed(_go_on, 2, tmp_path, 2, 2, options)[0]
    _assert_close(resumed, expected, 1e-4)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    run_distributed(_save, 2, tmp_path, 1, 2, CLIPPED)
    folder = find_checkpoint(tmp_path, "last")
    whole = build_seq2seq(spine.model_config(), spine.VOCAB)
    load_weights(whole, folder)

    other = build_seq2seq(spine.model_config(ffn_dim=32), spine.VOCAB)
    with pytest.raises(UserError, match=r"shape .* the model wants .* another model"):
        load_weights(other, folder)
    dense = build_seq2seq(spine.model_config(moe=None), spine.VOCAB)
    with pytest.raises(UserError, match="another model"):
        load_weights(dense, folder)

    part = folder / "weights.1.safetensors"
    content = part.read_bytes()
    part.write_bytes(content[:-10])
    with pytest.raises(UserError, match=r"weights\.1\.safetensors: \d+ bytes instead of \d+"):
        load_weights(whole, folder)
    part.write_bytes(b"x" * len(content))
    with pytest.raises(UserError, match=r"weights\.1\.safetensors: damaged"):
        load_weights(whole, folder)
    part.unlink()
    with pytest.raises(UserError, match=r"weights\.1\.safetensors: missing"):
        load_weights(whole, folder)
    meta = folder / "checkpoint.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format_version": 99}))
    with pytest.raises(UserError, match="checkpoint format 99"):
        load_weights(whole, folder)
    with pytest.raises(UserError, match="no checkpoint here"):
        load_weights(whole, tmp_path / "nowhere")


def _store(folder: Path) -> list[list[str]]:
    engine = spine.make_engine(0, 1)
    checkpoints = folder / "checkpoints"
    store = CheckpointStore(checkpoints, keep_last=2, keep_best=1, higher_is_better=True)
    seen = []
    for update, score in ((1, 5.0), (2, 9.0), (3, 7.0), (4, None)):
        store.save(engine, update, {}, score)
        seen.append(sorted(p.name for p in checkpoints.glob("update_*")))
    return [*seen, [find_checkpoint(folder, which).name for which in ("best", "last")]]


def test_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    seen = run_distributed(_store, 1, tmp_path)[0]
    one, two, three, four = (f"update_{n:08d}" for n in (1, 2, 3, 4))
    assert seen == [[one], [one, two], [two, three], [two, three, four], [two, four]]


def test_what_a_killed_save_leaves_is_not_a_checkpoint(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "update_00000007.incomplete").mkdir(parents=True)
    (checkpoints / "update_00000008.replaced").mkdir()  # killed between two renames
    (checkpoints / "update_00000009.replaced").mkdir()  # killed after them
    (checkpoints / "update_00000009").mkdir()
    CheckpointStore(checkpoints, 1, 1, True).discard_incomplete()
    left = sorted(path.name for path in checkpoints.iterdir())
    assert left == ["update_00000008", "update_00000009"]
    with pytest.raises(UserError, match="no finished checkpoint"):
        find_checkpoint(tmp_path, "last")
