"""Weights on disk: parameters and persistent buffers, in a folder or a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ds_seq.errors import UserError
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.weights.fill import expert_offsets, fill, load_weights, model_tensors
from ds_seq.weights.meta import FORMAT_VERSION
from ds_seq.weights.source import FORMAT_KEY, TensorFile, TensorFolder, TensorSource, expert_key

Write = Callable[[dict[str, Tensor]], TensorSource]


class Counting(nn.Module):
    """A model with a parameter, a persistent counter, and a table that is not persistent."""

    steps: Tensor

    def __init__(self, steps: list[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(3.0))
        self.register_buffer("steps", torch.tensor(steps))
        self.register_buffer("table", torch.ones(2), persistent=False)


@pytest.fixture(params=["folder", "file"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    """Write tensors as a checkpoint folder or as one file."""

    def folder(tensors: dict[str, Tensor]) -> TensorSource:
        file = tmp_path / "weights.0.safetensors"
        save_file(tensors, str(file))
        meta = {"format_version": FORMAT_VERSION, "files": {file.name: file.stat().st_size}}
        (tmp_path / "checkpoint.json").write_text(json.dumps(meta))
        return TensorFolder(tmp_path, "weights")

    def file(tensors: dict[str, Tensor]) -> TensorSource:
        header = {FORMAT_KEY: str(FORMAT_VERSION)}
        save_file(tensors, str(tmp_path / "all.safetensors"), metadata=header)
        return TensorFile(tmp_path / "all.safetensors")

    return folder if request.param == "folder" else file


def _saved(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model_tensors(model)}


def test_persistent_buffers_belong_to_the_model_and_others_do_not() -> None:
    assert [name for name, _ in model_tensors(nn.Sequential(Counting([1])))] == [
        "0.weight",
        "0.steps",
    ]


def test_buffers_come_back_as_they_were(write: Write) -> None:
    large = 2**40 + 1  # no float of 32 bits holds it
    source = write(_saved(Counting([large, -7])))
    model = Counting([0, 0]).half()
    fill(model, source)
    assert model.steps.tolist() == [large, -7]
    assert model.steps.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("steps"), "has no tensor 'steps'"),
        (lambda t: t.update(table=torch.ones(2)), "has 'table', which the model does not have"),
        (lambda t: t.update(steps=torch.zeros(3, dtype=torch.int64)), r"steps has shape \(3,\)"),
        (lambda t: t.update(steps=torch.zeros(2)), "steps holds torch.float32, .* torch.int64"),
        (lambda t: t.update(steps=torch.zeros(2, dtype=torch.int32)), "steps holds torch.int32"),
        (lambda t: t.update(weight=torch.arange(3)), "weight holds torch.int64, .* torch.float32"),
    ],
)
def test_missing_foreign_and_misshapen_tensors_are_refused(
    write: Write, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    tensors = _saved(Counting([1, 2]))
    change(tensors)
    source = write(tensors)
    with pytest.raises(UserError, match=message) as raised:
        fill(Counting([0, 0]), source)
    assert str(source.path) in str(raised.value)


def test_a_folder_written_before_there_were_buffers_is_read_as_ever(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    file = tmp_path / "weights.0.safetensors"
    save_file(dict(model.state_dict()), str(file))
    meta = {"format_version": FORMAT_VERSION, "files": {file.name: file.stat().st_size}}
    (tmp_path / "checkpoint.json").write_text(json.dumps(meta))
    other = nn.Linear(2, 3)
    load_weights(other, tmp_path)
    assert torch.equal(other.weight, model.weight)


def test_another_number_of_experts_is_refused(
    build: Callable[..., Seq2SeqTransformer], write: Write, request: pytest.FixtureRequest
) -> None:
    model = build(moe={"num_experts": 4})
    tensors = _saved(model)
    if "folder" in request.node.name:
        for name in expert_offsets(model):
            rows = tensors.pop(name)
            tensors.update({expert_key(name, i): row.clone() for i, row in enumerate(rows)})
    source = write(tensors)
    same = build(moe={"num_experts": 4}, seed=2)
    fill(same, source)
    assert all(torch.equal(v, same.get_parameter(n)) for n, v in model.named_parameters())
    for count in (2, 8):
        other = build(moe={"num_experts": count})
        for layer in (module for module in other.modules() if isinstance(module, MoeFeedForward)):
            layer.gate.weight = nn.Parameter(torch.zeros(4, 16))  # only the experts differ
        with pytest.raises(UserError, match=rf"w1 has 4 experts, the model expects {count}"):
            fill(other, source)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_first_format_is_still_read(
    build: Callable[..., Seq2SeqTransformer], tmp_path: Path, kind: str
) -> None:
    """In format 1, rows are multiplied by w1 (D, H) and w2 (F, D) of an expert."""
    model, other = (build(moe={"num_experts": 2}, seed=seed) for seed in (1, 2))
    tensors = _saved(model)
    for name in expert_offsets(model):
        rows = tensors.pop(name)
        layer = model.get_submodule(name.rsplit(".", 2)[0])
        assert isinstance(layer, MoeFeedForward)
        up, down = layer.experts.maps
        of_old = {"w1": up.transpose(1, 2), "w2": down.transpose(1, 2)}
        rows = of_old.get(name[-2:], rows).detach().clone()
        each = {expert_key(name, i): row.clone() for i, row in enumerate(rows)}
        tensors.update({name: rows.contiguous()} if kind == "file" else each)
    file = tmp_path / "weights.0.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, str(file))
    if kind == "folder":
        meta = {"format_version": 1, "files": {file.name: file.stat().st_size}}
        (tmp_path / "checkpoint.json").write_text(json.dumps(meta))
        fill(other, TensorFolder(tmp_path, "weights"))
    else:
        fill(other, TensorFile(file))
    for name, value in model.named_parameters():
        assert torch.equal(other.get_parameter(name), value), name


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "new.safetensors"
    for version in (str(FORMAT_VERSION + 1), "two"):
        save_file({"a": torch.zeros(1)}, str(file), metadata={FORMAT_KEY: version})
        with pytest.raises(
            UserError, match=r"new.safetensors: checkpoint format \d, but this version"
        ):
            TensorFile(file)
