"""Run folders and exported folders, whole and damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ds_seq.config.data import DataConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import dump
from ds_seq.config.model import ModelConfig, MoeConfig
from ds_seq.config.train import TrainConfig
from ds_seq.data.vocab import train_vocab
from ds_seq.errors import UserError
from ds_seq.interop.export import export, main
from ds_seq.interop.run_folder import find_checkpoint, load_run
from ds_seq.models import build_model
from ds_seq.models.weights import FORMAT_VERSION, expert_key, expert_offsets
from tests.data.toy import write_toy

SIZES = {"d_model": 16, "ffn_dim": 24, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 2}


def _write_checkpoint(run: Path, update: int, model: nn.Module) -> str:
    """A checkpoint as training leaves it, all by one rank."""
    name = f"update_{update:08d}"
    folder = run / "checkpoints" / name
    folder.mkdir(parents=True)
    offsets = expert_offsets(model)
    tensors: dict[str, Tensor] = {}
    for key, value in model.named_parameters():
        if key in offsets:
            rows = enumerate(value.detach())
            tensors.update({expert_key(key, row): part.clone() for row, part in rows})
        else:
            tensors[key] = value.detach()
    file = folder / "weights.0.safetensors"
    save_file(tensors, str(file))
    meta = {"format_version": FORMAT_VERSION, "files": {file.name: file.stat().st_size}}
    (folder / "checkpoint.json").write_text(json.dumps(meta))
    return name


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with two checkpoints of a small model with experts; not to be written to."""
    folder = tmp_path_factory.mktemp("made")
    write_toy(folder / "text", 200, 10)
    run = folder / "run"
    run.mkdir()
    sides = [folder / "text" / "train.en", folder / "text" / "train.de"]
    vocab = train_vocab(sides, run / "vocab.model", 130)
    config = ExperimentConfig(
        name="small",
        data=DataConfig(source_lang="en", target_lang="de", dir="data"),
        model=ModelConfig(**SIZES, moe=MoeConfig(num_experts=4)),  # type: ignore[arg-type]
        train=TrainConfig(valid_bleu=False, best_metric="loss"),
    )
    (run / "config.yaml").write_text(dump(config), encoding="utf-8")
    names = []
    for update in (10, 20):
        model = build_model(config.model, len(vocab), 1, 0, seed=update)
        names.append(_write_checkpoint(run, update, model))
    index = {"best": [{"name": names[0], "score": 2.0}], "last": [{"name": n} for n in names]}
    (run / "checkpoints" / "index.json").write_text(json.dumps(index))
    return run


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.mark.parametrize(
    ("which", "update"),
    [("best", 10), ("last", 20), ("update_00000010", 10), ("update_00000020", 20)],
)
def test_checkpoints_by_name(original: Path, which: str, update: int) -> None:
    loaded = load_run(original, which)
    assert loaded.source == original / "checkpoints" / f"update_{update:08d}"
    expected = build_model(loaded.config.model, len(loaded.vocab), 1, 0, seed=update)
    for name, value in loaded.model.named_parameters():
        assert torch.equal(value, expected.get_parameter(name)), name
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_checkpoint_by_its_path(original: Path) -> None:
    path = original / "checkpoints" / "update_00000010"
    assert find_checkpoint(original, str(path)) == path


def test_without_validations_the_best_is_the_last(run: Path) -> None:
    index = run / "checkpoints" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "best": []}))
    assert find_checkpoint(run, "best").name == "update_00000020"


def test_an_unknown_checkpoint_lists_the_known_ones(original: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint 'update_7'; .* best, last, update_00000010"):
        find_checkpoint(original, "update_7")


@pytest.mark.parametrize("content", [None, "", "[]", '{"best": []}', '{"last": [], "best": []}'])
def test_a_run_without_a_finished_checkpoint(run: Path, content: str | None) -> None:
    index = run / "checkpoints" / "index.json"
    index.unlink()
    if content is not None:
        index.write_text(content)
    with pytest.raises(UserError, match=f"{run}: has no finished checkpoint"):
        load_run(run)


@pytest.mark.parametrize("name", ["config.yaml", "vocab.model"])
def test_a_folder_that_is_no_run(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(UserError, match=f"not a run folder \\({name} is missing\\)"):
        load_run(run)
    with pytest.raises(UserError, match="no such run folder"):
        load_run(run / "nowhere")


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0.0), ("bf16", 0.02)])
def test_an_exported_folder_holds_the_same_model(
    original: Path, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    out = tmp_path / "out"
    file = export(original, out, "last", dtype)
    assert sorted(path.name for path in out.iterdir()) == [
        "config.yaml",
        "model.safetensors",
        "vocab.model",
    ]
    ours, theirs = load_run(out), load_run(original, "last")
    assert ours.source == file and ours.vocab.hash == theirs.vocab.hash
    for name, value in theirs.model.named_parameters():
        torch.testing.assert_close(
            ours.model.get_parameter(name), value, rtol=tolerance, atol=tolerance
        )


def test_an_export_overwrites_nothing(original: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="exists already"):
        export(original, out)
    assert not list(out.iterdir())


def test_a_failed_export_leaves_nothing(original: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        export(original, tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command_says_where_the_file_is(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(original), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out / 'model.safetensors'}: ")


def test_damaged_exports(original: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = export(original, out)
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load_run(out)
    save_file({"other": torch.zeros(1)}, str(file))
    with pytest.raises(UserError, match="has no tensor .* another model"):
        load_run(out)
    file.write_bytes(content)
    config = out / "config.yaml"
    config.write_text(config.read_text().replace("ffn_dim: 24", "ffn_dim: 32"))
    with pytest.raises(UserError, match="has shape .* the model wants"):
        load_run(out)
