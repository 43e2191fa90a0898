"""The mean of checkpoints of any origin."""

from __future__ import annotations

import json
import shutil
import weakref
from dataclasses import replace
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.runs.average import NOTE_KEY, average, mean, named_model
from ds_seq.runs.export import export
from ds_seq.runs.open import DTYPES, load_run, open_run
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.weights.fill import expert_offsets, model_tensors
from ds_seq.weights.meta import FORMAT_VERSION
from ds_seq.weights.source import TensorSource, expert_key
from tests.unit.runs.averaged import (
    BIAS,
    MOE,
    UPDATES,
    assert_mean,
    average_command,
    bits,
    checkpoint,
    make_states,
    write_states,
)
from tests.unit.runs.made import experiment, write_run


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    """A small model with experts and counters."""
    return experiment({"moe": MOE})


@pytest.fixture(scope="module")
def models(config: ExperimentConfig, vocab: SentencePieceTokenizer) -> list[nn.Module]:
    """Three states of it."""
    return make_states(config, vocab)


@pytest.fixture(scope="module")
def original(
    tmp_path_factory: pytest.TempPathFactory,
    config: ExperimentConfig,
    vocab: SentencePieceTokenizer,
    models: list[nn.Module],
) -> Path:
    """A run folder with the three; not to be changed."""
    return write_states(tmp_path_factory.mktemp("made") / "run", config, vocab, models)


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_mean_is_numpys_and_knows_no_order(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    values = [
        torch.randn(50, 4, generator=generator) * 10.0 ** (index % 5 - 3) for index in range(count)
    ]
    result = mean(iter(values)).float()
    expected = np.stack([value.numpy() for value in values]).mean(axis=0, dtype=np.float64)
    assert torch.equal(result, torch.from_numpy(expected.astype(np.float32)))
    backward = mean(reversed(values)).float()
    torch.testing.assert_close(backward, result, rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.int64, torch.uint8])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_the_mean_of_equal_ones_is_what_they_are(dtype: torch.dtype, count: int) -> None:
    value = (torch.randn(500, generator=torch.Generator().manual_seed(1)) * 100).to(dtype)
    if dtype.is_floating_point:
        more = [float("inf"), float("-inf"), -0.0, torch.finfo(dtype).tiny / 4]
    else:
        more = [torch.iinfo(dtype).max, torch.iinfo(dtype).min]
    value = torch.cat([value, torch.tensor(more, dtype=dtype)])
    before = value.clone()
    assert torch.equal(bits(mean([value] * count).to(dtype)), bits(before))
    assert torch.equal(bits(value), bits(before))


def test_what_is_averaged_stays_as_it_is() -> None:
    value = torch.ones(3, dtype=torch.float64)
    assert mean([value, torch.zeros(3)]).tolist() == [0.5] * 3 and value.tolist() == [1.0] * 3


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_mean_of_whole_numbers_is_the_nearest_one(count: int) -> None:
    large = 2**61  # float64 cannot represent it exactly, and a sum of four overflows
    generator = torch.Generator().manual_seed(count)
    near = torch.randint(-9, 9, (count, 99), generator=generator).tolist()
    columns = [[*row, row[0] + large, row[1] - large] for row in near]
    exact = [round(Fraction(sum(row), count)) for row in zip(*columns, strict=True)]
    for order in permutations(columns):
        assert mean([torch.tensor(column) for column in order]).tolist() == exact


def _write_spread(folder: Path, model: nn.Module, ranks: int, version: int) -> None:
    """A checkpoint as ``ranks`` processes leave it, that share experts and dense tensors."""
    offsets = expert_offsets(model)
    files: list[dict[str, Tensor]] = [{} for _ in range(ranks)]
    for index, (name, value) in enumerate(model_tensors(model)):
        if name not in offsets:
            files[index % ranks][name] = value.detach().clone()
            continue
        for expert, row in enumerate(value.detach()):
            old = version == 1 and name.endswith("w2")
            rank = expert * ranks // len(value)
            files[rank][expert_key(name, expert)] = (row.T if old else row).contiguous().clone()
    shutil.rmtree(folder)
    folder.mkdir()
    sizes = {}
    for rank, tensors in enumerate(files):
        file = folder / f"weights.{rank}.safetensors"
        save_file(tensors, str(file))
        sizes[file.name] = file.stat().st_size
    (folder / "checkpoint.json").write_text(json.dumps({"format_version": version, "files": sizes}))


def test_layout_and_format_of_a_checkpoint_do_not_matter(
    run: Path, models: list[nn.Module], tmp_path: Path
) -> None:
    spread = ((1, FORMAT_VERSION), (2, 1), (4, FORMAT_VERSION))
    for model, update, (ranks, version) in zip(models, UPDATES, spread, strict=True):
        _write_spread(checkpoint(run, update), model, ranks, version)
    assert average_command(run, "--last", 3, "--out", tmp_path / "out.safetensors") == 0
    assert_mean(load_run(tmp_path / "out.safetensors", "best").model, models)


def test_checkpoints_runs_and_exports_mix(
    original: Path, models: list[nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "one.safetensors", tmp_path / "folder"
    export(original, file, "update_00000010")
    export(original, folder, "update_00000030")
    inputs = [checkpoint(original, 10), original, file, folder]  # 10, the best = 20, 10, 30
    out = tmp_path / "out"
    assert average_command(*inputs, "--out", out) == 0
    loaded = load_run(out, "best")
    assert_mean(loaded.model, [models[i] for i in (0, 1, 0, 2)])
    stored = open_run(original, "best")
    assert (
        loaded.tokenizers.fingerprint == stored.tokenizers.fingerprint
        and loaded.experiment == stored.experiment
    )
    assert capsys.readouterr().out.splitlines()[:-1] == [
        f"{checkpoint(original, 10)}  update 10  loss 2.5",
        f"{checkpoint(original, 20)}  update 20  loss 1.5",
        str(file),
        str(folder),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 3])
def test_the_mean_of_one_model_is_that_model(
    original: Path, tmp_path: Path, dtype: str, count: int
) -> None:
    one = tmp_path / "one.safetensors"
    export(original, one, "last", dtype)
    for number, source in enumerate((checkpoint(original, 30), one)):
        out = tmp_path / f"{number}.safetensors"
        assert average_command(*[source] * count, "--dtype", dtype, "--out", out) == 0
        ours, theirs = load_file(out), load_file(one)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(bits(ours[k]), bits(theirs[k])) for k in theirs)
        assert ours[BIAS].dtype == torch.int64


@pytest.mark.parametrize(
    ("options", "updates"),
    [
        (("--last", 1), (30,)),
        (("--last", 2), (20, 30)),
        (("--best", 1), (20,)),
        (("--best", 2), (20, 30)),
        (("--best", 3), (20, 30, 10)),
        (("--last", 1, "--until", 20), (20,)),
        (("--last", 2, "--until", 29), (10, 20)),
        (("--best", 1, "--until", 10), (10,)),
    ],
)
def test_the_index_says_which_are_the_last_and_the_best(
    original: Path,
    models: list[nn.Module],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str | int, ...],
    updates: tuple[int, ...],
) -> None:
    out = tmp_path / "out.safetensors"
    assert average_command(original, *options, "--out", out) == 0
    assert_mean(load_run(out, "best").model, [models[UPDATES.index(update)] for update in updates])
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == [f"update {update}" for update in updates]
    assert last.startswith(f"{out}: mean of {len(updates)}, ")
    with safe_open(str(out), framework="pt") as stored:
        note = json.loads(stored.metadata()[NOTE_KEY])
    assert [(part["update"], part["name"]) for part in note] == [
        (update, f"update_{update:08d}") for update in updates
    ]


def test_settings_of_the_training_may_differ(
    original: Path, vocab: SentencePieceTokenizer, models: list[nn.Module], tmp_path: Path
) -> None:
    settings = {"dropout": 0.3, "attention_dropout": 0.1, "activation_checkpointing": True}
    other = experiment({"moe": MOE, **settings})
    write_run(tmp_path / "other", other, vocab, {5: models[0]})
    assert average_command(original, tmp_path / "other", "--out", tmp_path / "out") == 0
    loaded = load_run(tmp_path / "out", "best")
    assert_mean(loaded.model, [models[1], models[0]])
    assert loaded.model_config.dropout == open_run(original, "best").model_config.dropout


def test_checkpoints_on_another_disk(
    run: Path, models: list[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "checkpoints").rename(tmp_path / "scratch")
    (run / "checkpoints").symlink_to(tmp_path / "scratch")
    monkeypatch.chdir(run)
    assert average_command("../run/checkpoints/update_00000020", run, "--out", "../out") == 0
    monkeypatch.chdir(tmp_path)
    assert_mean(load_run("out", "best").model, [models[1], models[1]])


def test_a_checkpoint_named_from_where_it_lies(
    original: Path, models: list[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(original / "checkpoints")
    assert average_command("update_00000010", "--out", tmp_path / "out") == 0
    assert_mean(load_run(tmp_path / "out", "best").model, models[:1])


def test_an_export_inside_the_run_folder_is_not_taken_for_its_checkpoints(
    run: Path, models: list[nn.Module], tmp_path: Path
) -> None:
    export(run, run / "model.safetensors", "update_00000010")
    assert average_command(run, "--last", 2, "--out", tmp_path / "last") == 0
    assert_mean(load_run(tmp_path / "last", "best").model, models[1:])
    assert average_command(checkpoint(run, 30), run, "--out", tmp_path / "two") == 0
    assert_mean(load_run(tmp_path / "two", "best").model, models[1:])


class _Watched:
    """A source that knows how many of the tensors it has handed out are still there."""

    def __init__(self, source: TensorSource, alive: weakref.WeakSet[Tensor]) -> None:
        self._source, self.path, self._alive = source, source.path, alive
        self.most, self.largest = 0, 0

    def keys(self) -> set[str]:
        return self._source.keys()

    def keys_of(self, name: str, num_experts: int | None) -> list[str]:
        return self._source.keys_of(name, num_experts)

    def num_experts(self, name: str) -> int:
        return self._source.num_experts(name)

    def num_values(self) -> int:
        return self._source.num_values()

    def read(self, key: str) -> Tensor:
        return self._source.read(key)

    def read_stacked(self, name: str, first_expert: int | None, num_experts: int) -> Tensor:
        value = self._source.read_stacked(name, first_expert, num_experts)
        if value.is_floating_point():  # a router's counters are few
            self._alive.add(value)
        self.most = max(self.most, len(self._alive))
        self.largest = max(self.largest, num_experts if first_expert is not None else 0)
        return value

    def verify(self) -> None:
        self._source.verify()


def test_one_tensor_is_in_memory_at_a_time(original: Path) -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    runs = [named_model(checkpoint(original, update)).run for update in UPDATES]
    watched = [_Watched(run.weights, alive) for run in runs]
    average([replace(run, weights=source) for run, source in zip(runs, watched, strict=True)])
    assert all(source.most == 1 for source in watched)
    assert all(source.largest == 1 for source in watched)  # expert by expert
