"""`model: {name: huggingface, path: FOLDER}` becomes what the folder says, without torch."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.huggingface.facts import sinusoids
from ds_seq.config.huggingface.folder import StoredTensors
from ds_seq.config.load import read_experiment
from ds_seq.config.model import HuggingFaceModelConfig
from ds_seq.config.model.union import ModelConfig
from ds_seq.errors import UserError
from ds_seq.modules.positions import sinusoidal_rows
from ds_seq.runs.formats.huggingface.folder import FolderTensors
from ds_seq.runs.formats.huggingface.importing import Languages, read_folder
from tests.fresh import words_printed_by

FOLDERS = Path(__file__).parents[2] / "data" / "huggingface"
NAMES = sorted(path.name for path in FOLDERS.iterdir())
CODES = {"source_code": "eng_Latn", "target_code": "deu_Latn"}


def load(folder: Path, *overrides: str, **model: Any) -> ExperimentConfig:
    data: dict[str, Any] = {"source_lang": "en", "target_lang": "de", "dir": "shards"}
    if folder.name.startswith("nllb"):
        data["vocab"] = {"huggingface": CODES}
    return read_experiment(
        {
            "name": "x",
            "data": data,
            "model": {"name": "huggingface", "path": str(folder), **model},
            "validation": {"metrics": [], "best": "loss"},
        },
        overrides,
    )


def mistakes(folder: Path, *overrides: str, **model: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(folder, *overrides, **model)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_the_sections_are_those_of_an_import(name: str) -> None:
    codes = CODES if name.startswith("nllb") else {}
    imported = read_folder(FOLDERS / name, "x", Languages("en", "de", **codes)).config
    config = load(FOLDERS / name, f"model.max_positions={imported.model.max_positions}")
    assert config.model == imported.model
    assert config.criterion == imported.criterion
    assert config.generation == imported.generation
    own, other = (each.model_dump() for each in (config.data.vocab, imported.data.vocab))
    assert own == other
    assert config.train.init_from == str(FOLDERS / name)
    assert config.data.max_source_length <= config.model.max_positions


def test_what_fits_the_weights_can_be_set() -> None:
    lora = {"rank": 2, "modules": ["query"]}
    config = load(FOLDERS / "t5", "train.init_from=null", dropout=0.3, max_positions=99, lora=lora)
    assert (config.model.dropout, config.model.max_positions) == (0.3, 99)
    assert config.model.lora is not None and config.train.allow_missing == ["lora"]
    assert config.train.init_from is None  # the same model, with weights drawn at random
    experts = load(FOLDERS / "nllb_moe", moe={"capacity_factor": None, "num_experts": 4})
    moe = experts.model.moe
    assert moe is not None and (moe.capacity_factor, moe.top_k) == (None, 2)
    upcycled = load(FOLDERS / "bart", moe={"num_experts": 2}, positions={"name": "learned"})
    assert upcycled.model.moe is not None and upcycled.model.moe.num_experts == 2


def test_what_contradicts_the_folder_is_named() -> None:
    lines = mistakes(FOLDERS / "bart", "optimizer.lr=x", d_model=512, positions="rotary")
    assert [line.split(": ", 1)[1] for line in lines] == [
        f"model.d_model: 512, but {FOLDERS / 'bart'} has 16; remove the key",
        f"model.positions: 'rotary', but {FOLDERS / 'bart'} has 'learned'; remove the key",
        "optimizer.lr: should be a number, not 'x'",
    ]
    (line,) = mistakes(FOLDERS / "nllb_moe", moe={"top_k": 1})
    assert "model.moe.top_k: 1, but" in line and "has 2" in line
    (line,) = mistakes(FOLDERS / "bart", "data.vocab.name=sentencepiece")
    assert "data.vocab.name: 'sentencepiece', but" in line
    (line,) = mistakes(FOLDERS / "bart", max_positions=32)
    assert "model.max_positions: 32, but" in line
    (line,) = mistakes(FOLDERS / "bart", dropuot=0.1)
    assert "model.dropuot: unknown key (did you mean 'dropout'?)" in line
    (line,) = mistakes(FOLDERS / "bart", path=7)
    assert "model.path: is 7; name the folder of the model" in line


def _copy(tmp_path: Path, name: str, **changes: Any) -> Path:
    folder = tmp_path / name
    shutil.copytree(FOLDERS / name, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in config.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoModel": "x.Y"}}, "its model is code of its own (auto_map), which is"),
        ({"model_type": "led"}, "model_type 'led' cannot be imported; there are bart, mbart"),
        ({"encoder_layers": "absent"}, "config.json has no encoder_layers; copy it again"),
        ({"d_model": "16"}, "config.json: d_model is '16', which is no size"),
    ],
)
def test_a_folder_without_counterpart_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = _copy(tmp_path, "bart", **changes)
    (line,) = mistakes(folder)
    assert line.startswith(f"experiment: model.path: {folder}: {message}")


def test_files_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    (line,) = mistakes(tmp_path / "none")
    assert "model.path: " in line and "none: no such folder; give a folder that" in line
    folder = _copy(tmp_path, "bart")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    for damaged in (content[:4], content[:-10], struct.pack("<Q", 3) + b"[1]" + content[11:]):
        file.write_bytes(damaged)
        (line,) = mistakes(folder)
        assert "model.safetensors: damaged (" in line
    file.rename(folder / "pytorch_model.bin")
    (line,) = mistakes(folder)
    assert "has only pytorch_model.bin, which could run code; let transformers write" in line


def test_tensors_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    wide = torch.randn(5, 6)
    formats = {"double": torch.float64, "half": torch.float16, "brain": torch.bfloat16}
    tensors = {"plain": wide, **{name: wide.to(dtype) for name, dtype in formats.items()}}
    tensors |= {"copy": wide.clone(), "zeros": torch.zeros(3), "longer": torch.randn(6, 6)}
    save_file(tensors, tmp_path / "model.safetensors")
    stored = StoredTensors(tmp_path)
    assert stored.keys() == tensors.keys() == FolderTensors(tmp_path).keys()
    for name in ("plain", *formats):
        assert stored.row(name, 3) == tensors[name][3].tolist()
        assert stored.shape(name) == [5, 6]
    assert stored.is_same("plain", "copy")
    assert not stored.is_same("plain", "half") and not stored.is_same("plain", "longer")
    assert stored.has_values("plain") and not stored.has_values("zeros")
    for is_exclusive, word in ((True, "exclusive"), (False, "inclusive")):
        row = sinusoidal_rows(8, 6, word)[7]  # type: ignore[arg-type]
        assert sinusoids(7, 6, is_exclusive) == pytest.approx(row.tolist(), abs=1e-5)


def test_the_section_itself_is_never_a_model() -> None:
    with pytest.raises(ValueError, match="is read by `ds_seq.config.load` only"):
        HuggingFaceModelConfig(name="huggingface", path="x")
    assert HuggingFaceModelConfig.__name__ in str(ModelConfig)


def test_expanding_imports_no_torch() -> None:
    code = (
        "from ds_seq.config.load import read_experiment\n"
        f"read_experiment({{'name': 'x', 'data': {{'source_lang': 'en', 'target_lang': 'de', "
        f"'dir': 'd'}}, 'model': {{'path': {str(FOLDERS / 'pegasus')!r}}}, "
        "'validation': {'metrics': [], 'best': 'loss'}})\n"
        "import sys\nprint(*sys.modules)"
    )
    loaded = {name.split(".")[0] for name in words_printed_by(code)}
    assert "pydantic" in loaded and not loaded & {"torch", "numpy", "safetensors", "tokenizers"}
