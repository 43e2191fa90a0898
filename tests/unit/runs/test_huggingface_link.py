"""`ds-seq import huggingface --link`: the weights stay where they are, and are read by expert."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ds_seq
from ds_seq import cli
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.runs.formats.huggingface.importing import Languages, import_folder
from ds_seq.runs.open import load_run, open_run
from ds_seq.weights.fill import fill

FOLDER = Path(__file__).parents[2] / "data" / "huggingface" / "nllb_moe"
SECOND = "model-00002-of-00002.safetensors"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The model in two files, the second of which has the experts 2 and 3 of all layers."""
    folder = tmp_path / "sharded"
    shutil.copytree(FOLDER, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {
        name: SECOND if ".expert_2." in name or ".expert_3." in name else "model-1.safetensors"
        for name in tensors
    }
    for file in set(where.values()):
        save_file({k: v for k, v in tensors.items() if where[k] == file}, folder / file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _link(folder: Path, out: Path) -> Path:
    words = ["--source-lang", "en", "--target-lang", "de", "--source-code", "eng_Latn"]
    words += ["--target-code", "deu_Latn", "--no-compare", "--link", "--out", str(out)]
    assert cli.main(["import", "huggingface", str(folder), *words]) == 0
    return out


def test_a_linked_run_is_the_imported_one(sharded: Path, tmp_path: Path, capsys: Capture) -> None:
    run = _link(sharded, tmp_path / "run")
    assert f"the weights stay in {sharded}" in capsys.readouterr().out
    assert not list(run.glob("*.safetensors"))
    whole = import_folder(FOLDER, "x", Languages("en", "de", "eng_Latn", "deu_Latn"))
    for (name, read), (_, made) in zip(
        load_run(run, "best").model.named_parameters(),
        whole.model.named_parameters(),
        strict=True,
    ):
        assert torch.equal(read, made), name
    expected = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
    limits = {"beam": 4, "max_len_a": 0.0, "max_len_b": 38, "length_penalty": 1.0}
    found = ds_seq.load(run).translate(expected["lines"], **limits)
    pairs = zip(found, expected["answers"]["4"], strict=True)
    assert all(ours == theirs for ours, theirs in pairs if theirs is not None)


def test_a_rank_reads_its_own_experts_only(sharded: Path, tmp_path: Path) -> None:
    stored = open_run(_link(sharded, tmp_path / "run"), "best")
    (sharded / SECOND).unlink()  # of the other rank
    parts = (stored.model_config, stored.tokenizers.sizes, 2)
    fill(build_model(*parts, 0, stored.seed), stored.weights)
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors: missing"):
        fill(build_model(*parts, 1, stored.seed), stored.weights)


def test_mistakes_are_named(sharded: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["--source-lang", "en", "--link", "--out", str(tmp_path / "x.safetensors")]
    assert cli.main(["import", "huggingface", str(sharded), *words]) == 2
    assert "--link makes a folder" in capsys.readouterr().err
    run = _link(sharded, tmp_path / "run")
    (sharded / SECOND).rename(sharded / "lost")
    with pytest.raises(UserError, match=r"00002\.safetensors: missing; copy the whole folder"):
        open_run(run, "best")
    (sharded / "lost").rename(sharded / SECOND)
    config = json.loads((sharded / "config.json").read_text(encoding="utf-8"))
    (sharded / "config.json").write_text(json.dumps(config | {"dropout": 0.5}), encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json: has changed since the import"):
        open_run(run, "best")
    shutil.rmtree(sharded)
    with pytest.raises(UserError, match="no such folder"):
        open_run(run, "best")
    (run / "linked.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"linked\.json: damaged"):
        open_run(run, "best")
