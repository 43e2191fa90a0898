"""A checkpoint written in one layout resumes unchanged in any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from ds_seq import distributed
from ds_seq.config.model import MoeConfig
from ds_seq.config.optim import AdafactorConfig, AdamConfig, SgdConfig
from ds_seq.errors import UserError
from ds_seq.models.build import build_seq2seq
from ds_seq.runs.formats.ds_seq import find_checkpoint
from ds_seq.training.checkpoint import CheckpointStore
from ds_seq.training.checkpoint_folder import first_sound, repair
from ds_seq.weights.fill import load_weights
from ds_seq.weights.source import TensorFolder
from tests.distributed import spine
from tests.distributed.harness import run_distributed
from tests.saving import save_and_wait
from tests.values import progress_at

Steps = spine.Steps
CLIPPED: dict[str, Any] = {"clip": 0.5, "optimizer": AdamConfig(lr=0.003)}
PYRAMID = MoeConfig(num_experts=[4, 8], top_k=2, capacity_factor=None, every=1)
TRAVELLER: dict[str, Any] = {**CLIPPED, "model": spine.small_model(moe=PYRAMID)}
SAVED_AT, AFTER = 2, 3  # updates before and after a save


class Layout(NamedTuple):
    """Of a run."""

    world: int
    expert_parallel: int
    stage: int

    def __str__(self) -> str:
        return f"world{self.world}-ep{self.expert_parallel}-zero{self.stage}"


ROUTES = {
    Layout(2, 2, 1): [Layout(1, 1, 0), Layout(2, 1, 2), Layout(4, 2, 3), Layout(4, 4, 1)],
    Layout(2, 2, 3): [Layout(1, 1, 2), Layout(2, 1, 0), Layout(4, 2, 2), Layout(4, 4, 3)],
    Layout(2, 2, 0): [Layout(2, 2, 0)],
    Layout(2, 1, 2): [Layout(1, 1, 3)],
    Layout(1, 1, 0): [Layout(2, 2, 3)],
    Layout(4, 4, 2): [Layout(2, 2, 1), Layout(2, 2, 3)],
}
WAYS = [(written, read) for written, readers in ROUTES.items() for read in readers]
SLOW_WAYS = {  # others arrive in each of these layouts, from there or in that stage
    (Layout(2, 2, 1), Layout(4, 4, 1)),
    (Layout(2, 2, 3), Layout(4, 2, 2)),
    (Layout(2, 2, 3), Layout(2, 1, 0)),
}
WORLDS = (1, 2, 4)


def _save(folder: Path, stage: int, spread: int, options: dict[str, Any]) -> Steps:
    """Some updates, a save, `AFTER` more; returns these."""
    engine = spine.make_engine(stage, spread, **options)
    spine.train(engine, range(SAVED_AT))
    store = CheckpointStore(folder / "checkpoints", 1, 1, True)
    save_and_wait(store, engine, SAVED_AT, progress_at(SAVED_AT))
    return spine.train(engine, range(SAVED_AT, SAVED_AT + AFTER))


def _go_on(folder: Path, stage: int, spread: int, options: dict[str, Any]) -> Steps:
    path = find_checkpoint(folder, "last")
    engine = spine.make_engine(stage, spread, checkpoint=path, **options)
    return spine.train(engine, range(SAVED_AT, SAVED_AT + AFTER))


def _assert_close(ours: Steps, expected: Steps, tolerance: float) -> None:
    for (loss, norm, applied), (want, want_norm, want_applied) in zip(ours, expected, strict=True):
        assert loss == pytest.approx(want, rel=tolerance)
        assert norm == pytest.approx(want_norm, rel=10 * tolerance)
        assert applied == want_applied


def _write_all(root: Path, world: int) -> dict[Layout, Steps]:
    return {
        layout: _save(root / str(layout), layout.stage, layout.expert_parallel, TRAVELLER)
        for layout in ROUTES
        if layout.world == world
    }


Arrivals = dict[tuple[Layout, Layout], tuple[bool, Steps]]
"""By way: whether it began with what was written, bit for bit, and its updates."""


def _read_all(root: Path, world: int, is_slow: bool) -> Arrivals:
    return {
        (written, read): _arrive(root / str(written), root / f"{written}-{read}", read)
        for written, read in WAYS
        if read.world == world and ((written, read) in SLOW_WAYS) == is_slow
    }


def _arrive(folder: Path, again: Path, layout: Layout) -> tuple[bool, Steps]:
    """Resume in a layout; return whether it holds exactly what was written, and the updates."""
    path = find_checkpoint(folder, "last")
    engine = spine.make_engine(layout.stage, layout.expert_parallel, checkpoint=path, **TRAVELLER)
    save_and_wait(CheckpointStore(again, 1, 1, True), engine, SAVED_AT, progress_at(SAVED_AT))
    is_same = distributed.rank() != 0 or _same_tensors(path, again / path.name)
    return is_same, spine.train(engine, range(SAVED_AT, SAVED_AT + AFTER))


def _same_tensors(one: Path, other: Path) -> bool:
    for kind in ("weights", "optimizer"):
        first, second = TensorFolder(one, kind), TensorFolder(other, kind)
        if first.keys() != second.keys() or not first.keys():
            return False
        if not all(torch.equal(first.read(key), second.read(key)) for key in first.keys()):
            return False
    return True


class Journeys(NamedTuple):
    """What became of every way."""

    uninterrupted: dict[Layout, Steps]
    resumed: Callable[[bool], Arrivals]
    """Whether of the slow ways -> those that resumed; run at the first request."""


@pytest.fixture(scope="module")
def journeys(tmp_path_factory: pytest.TempPathFactory) -> Journeys:
    """All layouts that write, then all that read; those of one world size share processes."""
    root, written = tmp_path_factory.mktemp("journeys"), {}
    for world in WORLDS:
        written |= run_distributed(_write_all, world, root, world, timeout=90.0)[0]

    @cache
    def resumed(is_slow: bool) -> Arrivals:
        found: Arrivals = {}
        for world in WORLDS:
            found |= run_distributed(_read_all, world, root, world, is_slow, timeout=90.0)[0]
        return found

    return Journeys(written, resumed)


def _slowly(case: Any, is_slow: bool) -> Any:
    return pytest.param(*case, marks=pytest.mark.slow if is_slow else ())


@pytest.mark.parametrize(
    ("written", "read"),
    [_slowly(way, way in SLOW_WAYS) for way in WAYS],
    ids=[f"{written}-to-{read}" for written, read in WAYS],
)
def test_resuming_in_another_layout_is_exact(
    written: Layout, read: Layout, journeys: Journeys
) -> None:
    expected = journeys.uninterrupted[written]
    assert len(expected) == AFTER
    assert abs(expected[0][0] - expected[-1][0]) > 1e-2  # there was something to learn
    way = (written, read)
    is_same, resumed = journeys.resumed(way in SLOW_WAYS)[way]
    assert is_same, "weights and optimizer state are not those of the checkpoint"
    _assert_close(resumed, expected, 1e-4)


RATES = AdamConfig(lr=0.01, lr_factors={"experts": 0.5, "routers": 3.0, "decoder": 2.0})
STATES: dict[str, tuple[int, dict[str, Any]]] = {
    **{
        f"{precision}-{stage}": (stage, {**CLIPPED, "precision": precision})
        for precision in ("fp16", "bf16")
        for stage in (1, 2, 3)
    },
    "momentum": (1, {"optimizer": SgdConfig(lr=0.1, momentum=0.9)}),
    "sgd": (3, {"optimizer": SgdConfig(lr=0.1)}),
    **{f"rates-{stage}": (stage, {"optimizer": RATES}) for stage in range(4)},
    "adafactor": (0, {"optimizer": AdafactorConfig(lr=0.01)}),
    "offload-2": (2, {**CLIPPED, "zero": {"offload_optimizer": {"device": "cpu"}}}),
    "offload-3": (3, {**CLIPPED, "zero": {"offload_optimizer": {"device": "cpu"}}}),
}


# each precision and stage is in others, and SGD with momentum has more to save than without
SLOW_STATES = {"fp16-2", "bf16-1", "bf16-3", "offload-3", "sgd", "rates-0", "rates-1", "rates-3"}
BothSteps = dict[str, tuple[Steps, Steps]]
"""By name, the updates after a save of the run that saved, and of one that resumed."""


def _there_and_back(root: Path, names: list[str]) -> BothSteps:
    found = {}
    for name in names:
        stage, options = STATES[name]
        small = {"model": spine.small_model(), **options}
        uninterrupted = _save(root / name, stage, 2, small)
        found[name] = (uninterrupted, _go_on(root / name, stage, 2, small))
    return found


@pytest.fixture(scope="module")
def there_and_back(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], BothSteps]:
    """Whether of the slow states -> their updates; run at the first request."""

    @cache
    def run(is_slow: bool) -> BothSteps:
        names = [name for name in STATES if (name in SLOW_STATES) == is_slow]
        root = tmp_path_factory.mktemp("states")
        found: BothSteps = run_distributed(_there_and_back, 2, root, names, timeout=90.0)[0]
        return found

    return run


@pytest.mark.parametrize("name", [_slowly((name,), name in SLOW_STATES) for name in STATES])
def test_every_optimizer_and_precision_resumes_exactly(
    name: str, there_and_back: Callable[[bool], BothSteps]
) -> None:
    expected, resumed = there_and_back(name in SLOW_STATES)[name]
    assert all(loss == loss and loss < 10 for loss, _, _ in expected)
    _assert_close(resumed, expected, 1e-4)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_without_zero(tmp_path: Path, precision: str) -> None:
    options = {"precision": precision, "clip": 0.5}
    expected = run_distributed(_save, 1, tmp_path, 0, 1, options)[0]
    resumed = run_distributed(_go_on, 1, tmp_path, 0, 1, options)[0]
    _assert_close(resumed, expected, 1e-4)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    run_distributed(_save, 2, tmp_path, 1, 2, CLIPPED)
    folder = find_checkpoint(tmp_path, "last")
    whole = build_seq2seq(spine.model_config(), spine.VOCAB, 1, 0, seed=1)
    load_weights(whole, folder)

    other = build_seq2seq(spine.model_config(ffn_dim=32), spine.VOCAB, 1, 0, seed=1)
    with pytest.raises(UserError, match=r"shape .* the model expects .* another model"):
        load_weights(other, folder)
    dense = build_seq2seq(spine.model_config(moe=None), spine.VOCAB, 1, 0, seed=1)
    with pytest.raises(UserError, match="another model"):
        load_weights(dense, folder)

    part = folder / "weights.1.safetensors"
    content = part.read_bytes()
    assert run_distributed(first_sound, 2, [folder]) == [(folder, [])] * 2
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # each rank reads half of the files
    found = run_distributed(first_sound, 2, [folder])
    assert found[0] == found[1] and found[0][0] is None and "weights.1" in found[0][1][0]
    with pytest.raises(UserError, match=r"weights\.1\.safetensors: damaged.*SHA-256 differs"):
        load_weights(whole, folder)
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
        save_and_wait(store, engine, update, {}, score)
        seen.append(sorted(p.name for p in checkpoints.glob("update_*")))
    return [*seen, [find_checkpoint(folder, which).name for which in ("best", "last")]]


def test_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    seen = run_distributed(_store, 1, tmp_path)[0]
    one, two, three, four = (f"update_{n:08d}" for n in (1, 2, 3, 4))
    assert seen == [[one], [one, two], [two, three], [two, three, four], [two, four]]


def _store_by_another_figure(folder: Path) -> tuple[list[str], dict[str, Any]]:
    engine = spine.make_engine(0, 1)
    checkpoints = folder / "checkpoints"
    first = CheckpointStore(checkpoints, 1, 1, higher_is_better=True, figure="bleu")
    for update, score in ((1, 9.0), (2, 7.0)):
        save_and_wait(first, engine, update, {}, score)
    again = CheckpointStore(checkpoints, 1, 1, higher_is_better=True, figure="bleu")
    save_and_wait(again, engine, 3, {}, 8.0)
    same = find_checkpoint(folder, "best").name
    other = CheckpointStore(checkpoints, 1, 1, higher_is_better=False, figure="ter")
    save_and_wait(other, engine, 4, {}, 60.0)
    names = [same, find_checkpoint(folder, "best").name]
    changed = CheckpointStore(checkpoints, 1, 1, False, figure="ter", comparable=False)
    save_and_wait(changed, engine, 5, {}, 99.0)
    return [*names, find_checkpoint(folder, "best").name], changed.index


def test_scores_of_other_kinds_are_not_compared_and_lose_no_checkpoint(tmp_path: Path) -> None:
    names, index = run_distributed(_store_by_another_figure, 1, tmp_path)[0]
    one, four, five = (f"update_{n:08d}" for n in (1, 4, 5))
    assert names == [one, four, five]
    assert index["best_by"] == "ter" and len(index["best"]) == 1
    former = [(entry["name"], entry["score"], entry["by"]) for entry in index["former_best"]]
    assert former == [(one, 9.0, "bleu"), (four, 60.0, "ter")]
    assert sorted(p.name for p in tmp_path.glob("checkpoints/update_*")) == [one, four, five]


def test_what_a_killed_save_leaves_is_not_a_checkpoint(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "update_00000007.incomplete").mkdir(parents=True)
    (checkpoints / "update_00000008.replaced").mkdir()  # killed between two renames
    (checkpoints / "update_00000009.replaced").mkdir()  # killed after them
    (checkpoints / "update_00000009").mkdir()
    repair(checkpoints)
    left = sorted(path.name for path in checkpoints.iterdir())
    assert left == ["update_00000008", "update_00000009"]
    with pytest.raises(UserError, match="no finished checkpoint"):
        find_checkpoint(tmp_path, "last")
