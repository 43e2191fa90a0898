"""Weights that fill a model only in part: every difference is named, those allowed pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ds_seq.config.model import TransformerConfig
from ds_seq.errors import UserError
from ds_seq.models.build import build_seq2seq
from ds_seq.surgery.upcycle import transfer
from ds_seq.weights.fill import Allowed, Differences, fill, model_tensors
from ds_seq.weights.meta import FORMAT_VERSION
from ds_seq.weights.selection import Selection, listed
from ds_seq.weights.source import FORMAT_KEY, TensorFile

MOE = {"num_experts": 2, "every": 1, "capacity_factor": None}
ADAPTERS = {"ids": ["de", "fr"], "active": "de"}


def _build(**options: Any) -> nn.Module:
    sizes = {"d_model": 8, "ffn_dim": 8, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 1}
    config = TransformerConfig.model_validate({**sizes, "max_positions": 16, **options})
    return build_seq2seq(config, 11, 1, 0, seed=1)


def _saved(model: nn.Module, path: Path) -> TensorFile:
    tensors = {name: value.detach() + 1 for name, value in model_tensors(model)}
    save_file(tensors, path, {FORMAT_KEY: str(FORMAT_VERSION)})
    return TensorFile(path)


@pytest.mark.parametrize("moe", [None, MOE], ids=["dense", "experts"])
def test_adapters_are_added_to_a_model_that_has_none(tmp_path: Path, moe: Any) -> None:
    base = _build(moe=moe)
    source = _saved(base, tmp_path / "base.safetensors")
    model = _build(moe=moe, adapters=ADAPTERS)
    before = {name: value.clone() for name, value in model_tensors(model)}
    with pytest.raises(UserError) as refused:
        fill(model, source, allowed=Allowed(hint="; allow it"))
    message = str(refused.value)
    for part in ("norm.weight", "down.bias", "up.weight"):
        for name in ("de", "fr"):
            assert f"'encoder.layers.*.adapters.for_{name}.{part}' (2)" in message
    assert message.endswith("belongs to another model; allow it")
    with pytest.raises(UserError, match="for_fr") as refused:
        fill(model, source, allowed=Allowed(Selection(["adapters.de"])))
    assert "for_de" not in str(refused.value)
    found = fill(model, source, allowed=Allowed(Selection(["adapters"])))
    assert found == Differences([name for name in before if ".adapters." in name], [])
    for name, value in model_tensors(model):
        added = 0 if ".adapters." in name else 1
        shared = dict(model_tensors(base)).get(name, before[name])
        assert torch.equal(value, shared + added), name


def test_what_the_model_lacks_is_named_and_left_out_if_allowed(tmp_path: Path) -> None:
    source = _saved(_build(adapters=ADAPTERS), tmp_path / "adapted.safetensors")
    model = _build()
    with pytest.raises(UserError, match=r"has 'decoder.layers.0.adapters.for_de.down.b.*have"):
        fill(model, source)
    found = fill(model, source, allowed=Allowed(unexpected=Selection(["*.adapters.*"])))
    assert not found.missing
    assert len(found.unexpected) == 2 * 3 * 6
    other = _build(adapters={"ids": ["fr", "it"]})
    with pytest.raises(UserError, match=r"has no tensor .*for_it.* and has .*for_de.*") as refused:
        fill(other, source)
    assert "for_fr" not in str(refused.value)


def test_an_adapted_dense_model_becomes_one_with_experts(tmp_path: Path) -> None:
    source = _saved(_build(adapters={"ids": ["de"]}), tmp_path / "dense.safetensors")
    model = _build(moe=MOE, adapters=ADAPTERS)
    with pytest.raises(UserError, match="for_fr"):
        transfer(model, source, 0.0)
    allowed = Allowed(Selection(["adapters.fr", "*.gate"]))
    found = transfer(model, source, 0.0, allowed)
    assert all(".for_fr." in name for name in found.missing)
    dense = source.read("encoder.layers.0.feed_forward.up.weight")
    experts = model.get_submodule("encoder.layers.0.feed_forward.experts")
    assert torch.equal(experts.maps[0][1], dense)


def test_a_shape_that_differs_is_named_whatever_is_allowed(tmp_path: Path) -> None:
    source = _saved(_build(adapters=ADAPTERS), tmp_path / "adapted.safetensors")
    model = _build(adapters={**ADAPTERS, "reduction": 2})
    everything = Selection(["*"])
    with pytest.raises(UserError, match=r"for_de.down.weight has shape \(2, 8\), .* \(4, 8\)"):
        fill(model, source, allowed=Allowed(everything, everything))


def test_layers_are_counted_in_a_list() -> None:
    assert listed(["a.0.w", "a.1.w", "b"]) == "'a.*.w' (2), 'b'"
    assert listed([f"n{i}" for i in range(30)]).endswith("'n19' and 10 more")
