"""The average of the weights, in every layout and precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ds_seq.config.ema import EmaConfig
from ds_seq.config.optim import AdamConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.runs.formats.ds_seq import find_checkpoint
from ds_seq.training.checkpoint import CheckpointStore
from ds_seq.training.engine import Engine
from ds_seq.training.rewind import rewind
from ds_seq.weights.fill import fill, model_tensors
from ds_seq.weights.meta import EMA
from ds_seq.weights.source import TensorFolder
from tests.distributed import spine
from tests.distributed.harness import run_distributed
from tests.saving import save_and_wait
from tests.values import progress_at

UPDATES, AFTER = 10, 2  # before a save and after it


class Case(NamedTuple):
    """A layout, a precision, and how often the weights are averaged."""

    world: int
    expert_parallel: int
    stage: int
    precision: str
    every: int = 1

    def __str__(self) -> str:
        return "world{}-ep{}-zero{}-{}-every{}".format(*self)

    @property
    def config(self) -> EmaConfig:
        """The section `train.ema`."""
        return EmaConfig(decay=0.8, every=self.every)


CASES = [
    Case(1, 1, 0, "fp32"),
    Case(2, 2, 1, "bf16"),
    Case(2, 2, 2, "fp16"),
    Case(2, 2, 3, "fp32", every=2),
]
MORE = [
    *(Case(1, 1, stage, precision) for stage in range(4) for precision in ("fp32", "bf16")),
    *(Case(2, 2, stage, "fp32") for stage in range(3)),
    *(Case(2, 1, stage, precision) for stage in range(4) for precision in ("fp32", "bf16")),
    *(Case(2, 1, stage, "fp16") for stage in range(4)),
    Case(4, 2, 0, "fp32"),
    *(
        Case(4, 2, stage, precision)
        for stage in range(1, 4)
        for precision in ("fp32", "bf16", "fp16")
    ),
]


class Found(NamedTuple):
    """What a training has left; whole tensors by name, unless they are said to be a rank's."""

    average: dict[str, Tensor]
    written_out: dict[str, Tensor]
    """The same by the definition, from the whole weights after each update."""
    raw: dict[str, Tensor]
    applied: int
    model: list[dict[str, Tensor]]
    """Weights of the rank's model before, while and after the average was in their place."""
    later: dict[str, Tensor]
    """The average `AFTER` updates after the save."""
    rewound: dict[str, Tensor]
    """And again, after returning to the checkpoint."""


def _engine(case: Case, checkpoint: Path | None = None) -> Engine:
    return spine.make_engine(
        case.stage,
        case.expert_parallel,
        precision=case.precision,
        optimizer=AdamConfig(lr=0.01),
        model=spine.small_model(),
        # the first updates overflow and are skipped
        sections={"fp16": {"initial_scale_power": 20}} if case.precision == "fp16" else None,
        ema=case.config,
        checkpoint=checkpoint,
    )


def _average(engine: Engine) -> dict[str, Tensor]:
    assert engine.ema is not None
    with engine.ema.as_fp32_weights():
        return spine.all_weights(engine)


def _model_weights(engine: Engine) -> dict[str, Tensor]:
    """What the model computes with; stage 3 has it cut, so that there is nothing to see."""
    parameters = engine.module.named_parameters() if engine.zero_stage < 3 else ()
    return {name: value.detach().float().clone() for name, value in parameters}


def _train(folder: Path, case: Case) -> Found:
    engine = _engine(case)
    assert engine.ema is not None
    expected, applied = spine.all_weights(engine), 0
    for update in range(UPDATES):
        is_applied = spine.train(engine, range(update, update + 1))[0][2]
        applied += is_applied
        if is_applied and applied % case.every == 0:
            decay = min(0.8, (1 + applied) / (10 + applied)) ** case.every
            for name, weight in spine.all_weights(engine).items():
                expected[name] = decay * expected[name] + (1 - decay) * weight
    average, raw, model = _average(engine), spine.all_weights(engine), [_model_weights(engine)]
    with engine.ema.as_weights():
        model.append(_model_weights(engine))
    model.append(_model_weights(engine))
    store = CheckpointStore(folder / str(case) / "checkpoints", 1, 1, True)
    save_and_wait(store, engine, UPDATES, progress_at(UPDATES))
    later = []
    for _ in range(2):
        spine.train(engine, range(UPDATES, UPDATES + AFTER))
        later.append(_average(engine))
        rewind(engine, spine.make_criterion(), find_checkpoint(folder / str(case), "last"))
    return Found(average, expected, raw, applied, model, *later)


def _resume(folder: Path, written: Case, read: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The average after resuming, and `AFTER` updates later."""
    engine = _engine(read, find_checkpoint(folder / str(written), "last"))
    before = _average(engine)
    spine.train(engine, range(UPDATES, UPDATES + AFTER))
    return before, _average(engine)


def _train_all(folder: Path, cases: list[Case]) -> dict[Case, Found]:
    return {case: _train(folder, case) for case in cases}


def _resume_all(folder: Path, ways: list[tuple[Case, Case]]) -> Any:
    return [_resume(folder, *way) for way in ways]


def _by_world(folder: Path, cases: list[Case]) -> dict[Case, Found]:
    found: dict[Case, Found] = {}
    for world in sorted({case.world for case in cases}):
        group = [case for case in cases if case.world == world]
        found |= run_distributed(_train_all, world, folder, group, timeout=120.0)[0]
    return found


Trained = tuple[Path, dict[Case, Found]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What each of `CASES` has left, and the folder of its run."""
    folder = tmp_path_factory.mktemp("averaged")
    return folder, _by_world(folder, CASES)


def _check(case: Case, found: Found, folder: Path) -> None:
    """The average is that of the definition, in training, in the model and on disk."""
    if case.precision == "fp16":
        assert 4 <= found.applied < UPDATES, "some updates are skipped"
    else:
        assert found.applied == UPDATES
    for name, value in found.written_out.items():
        torch.testing.assert_close(found.average[name], value, rtol=1e-6, atol=1e-6, msg=name)
    assert max((found.average[n] - v).abs().max() for n, v in found.raw.items()) > 1e-3

    before, inside, after = found.model
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[case.precision]
    for name, value in inside.items():
        if ".experts." not in name:  # of which a rank has some
            assert torch.equal(value, found.average[name].to(dtype).float()), name
        assert torch.equal(after[name], before[name]), name

    path = find_checkpoint(folder / str(case), "last")
    for kind, values in ((None, found.raw), (EMA, found.average)):
        whole = build_seq2seq(spine.small_model(), spine.VOCAB, 1, 0, seed=99)
        fill(whole, TensorFolder(path, "weights", replaced_by=kind))
        for name, value in model_tensors(whole):
            assert torch.equal(value, values[name]), name
    for name, value in found.later.items():
        assert torch.equal(found.rewound[name], value), name
        assert not torch.equal(found.average[name], value), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_average_is_that_of_the_definition(case: Case, trained: Trained) -> None:
    folder, found = trained
    _check(case, found[case], folder)


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_it_is_in_every_layout(tmp_path: Path) -> None:
    for case, found in _by_world(tmp_path, MORE).items():
        _check(case, found, tmp_path)


WAYS = [
    (CASES[0], CASES[0]),
    (CASES[3], CASES[0]._replace(every=2)),
    (CASES[1], CASES[1]),
    (CASES[0], CASES[3]._replace(every=1)),
]


def test_a_run_resumes_with_its_average(trained: Trained) -> None:
    folder, found = trained
    for world in (1, 2):
        ways = [way for way in WAYS if way[1].world == world]
        resumed = run_distributed(_resume_all, world, folder, ways)[0]
        for (written, read), (average, later) in zip(ways, resumed, strict=True):
            uninterrupted = found[written]
            for name, value in uninterrupted.average.items():
                assert torch.equal(average[name], value), (written, read, name)
            for name, value in uninterrupted.later.items():
                if read == written:
                    assert torch.equal(later[name], value), (read, name)
                if "qkv" not in name:  # keys need no bias: Adam makes steps of its rounding errors
                    torch.testing.assert_close(later[name], value, rtol=1e-4, atol=1e-4, msg=name)
