"""Packed exports: small, exactly the model they were made from, refused where weights change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ds_seq.commands.export import main
from ds_seq.commands.make_student import main as make_student
from ds_seq.config.model import TransformerConfig
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.runs.average import average
from ds_seq.runs.export import export
from ds_seq.runs.open import load_packed, load_run, open_run
from ds_seq.surgery.upcycle import start_from
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.weights.fill import fill
from ds_seq.weights.packed import HoldsBits, PackedFile, pack_signs, restore_scales, unpack_signs
from tests.batches import encode, score
from tests.unit.runs.made import experiment, write_run

CPU = torch.device("cpu")
MODELS: dict[str, dict[str, Any]] = {
    "ternary": {"linear": "bitnet", "activation": "swiglu", "num_kv_heads": 1},
    "binary": {"linear": {"name": "bitnet", "weights": "binary"}, "moe": {"num_experts": 2}},
    "experts": {
        "linear": "bitnet",
        "activation": "geglu",
        "moe": {"num_experts": 4, "top_k": 2, "shared_experts": 1, "every": 1},
    },
}


@pytest.fixture(scope="module", params=MODELS)
def run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    vocab: SentencePieceTokenizer,
) -> Path:
    """A run folder of each kind of model; not to be written to."""
    config = experiment(MODELS[request.param])
    model = build_model(config.model, len(vocab), 1, 0, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # no value is 0 or 1 by itself
    return write_run(tmp_path_factory.mktemp("made") / "run", config, vocab, {10: model})


@pytest.fixture(scope="module")
def packed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, tmp_path_factory.mktemp("out") / "m.safetensors", "best", form="bitnet")


def test_a_byte_is_what_the_format_says():
    signs = torch.tensor([[[1, -1, 0, 0, 1, -1, 1]]])
    assert pack_signs(signs, "ternary").tolist() == [[2 + 9 + 27 + 2 * 81, 0 + 2 * 3]]
    signs = torch.tensor([[[1, -1, -1, 1, 1, -1, -1, -1, 1]]])
    assert pack_signs(signs, "binary").tolist() == [[1 + 8 + 16, 1]]


@pytest.mark.parametrize("values", ["ternary", "binary"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 4, 10), (4, 8)])
def test_signs_come_back(values: Any, shape: tuple[int, ...]) -> None:
    signs = torch.randint(-1, 2, shape) if values == "ternary" else torch.randint(2, shape) * 2 - 1
    again = unpack_signs(pack_signs(signs, values), (shape[-2], shape[-1]), values)
    assert torch.equal(again, signs.to(torch.int8))


def _logits(model: Any) -> torch.Tensor:
    sources, targets = torch.randint(4, 60, (2, 3, 6), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        full = score(model, sources, targets).logits
        cache = model.start_cache(encode(model, sources), 1, max_length=6)
        for tokens in targets.T:
            step = model.decode_step(tokens, cache)
    return torch.cat([full.flatten(0, 1), step])


def test_it_is_exactly_the_model_it_was_made_from(run: Path, packed: Path) -> None:
    whole = _logits(load_run(run, "best").model)
    assert torch.equal(_logits(load_run(packed, "best").model), whole)
    first = _logits(load_packed(run, "best", None, CPU).model)
    assert torch.equal(_logits(load_packed(packed, "best", None, CPU).model), first)
    torch.testing.assert_close(first, whole, atol=1e-5, rtol=1e-5)


def test_it_is_small_and_the_command_and_check_say_how_small(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small.safetensors"
    assert main([str(run), "--out", str(out), "--format", "bitnet"]) == 0
    line = capsys.readouterr().out
    assert "times as small" in line and "instead of" in line
    stored = open_run(out, "best")
    cfg = stored.model_config
    assert isinstance(cfg, TransformerConfig) and isinstance(stored.weights, PackedFile)
    counted = sum(torch.Size(entry["shape"]).numel() for entry in stored.weights.entries.values())
    assert cfg.linear_weights() == counted
    with safe_open(str(out), framework="pt") as file:  # type: ignore[no-untyped-call]
        bytes_of = sum(len(file.get_tensor(name).flatten()) for name in stored.weights.entries)
    assert cfg.linear.packed_bits is not None
    ratio = bytes_of * 8 / counted
    assert cfg.linear.packed_bits <= ratio < 1.05 * cfg.linear.packed_bits


@pytest.mark.parametrize("run", ["binary", "experts"], indirect=True, scope="module")
def test_ranks_read_their_experts_only(packed: Path) -> None:
    stored = open_run(packed, "best")
    moe = stored.model_config.moe
    assert moe is not None
    whole = load_run(packed, "best").model
    for part in (0, 1):
        model = build_model(stored.model_config, stored.tokenizers.sizes, 2, part, seed=1)
        fill(model, stored.weights)
        restore_scales(model.eval().requires_grad_(False), stored.weights)  # type: ignore[arg-type]
        name = "decoder.layers.1.feed_forward.experts"
        ours, all_of_them = model.get_submodule(name), whole.get_submodule(name)
        count = ours.num_local
        x = torch.randn(3 * count, 16)
        counts = torch.full((count,), 3)
        more = torch.zeros(2 * count, dtype=torch.long)
        more[part * count :][:count] = 3
        assert torch.equal(ours(x, counts), all_of_them(x, more))


def test_what_changes_weights_refuses_rounded_ones(packed: Path, tmp_path: Path) -> None:
    stored = open_run(packed, "best")
    config = stored.experiment
    assert config is not None
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"init_from": str(packed)})}
    )
    attempts = [
        lambda: average([stored, stored]),
        lambda: export(packed, tmp_path / "again.safetensors", "best"),
        lambda: make_student([str(packed), "--out", str(tmp_path / "s"), "--encoder-layers", "1"]),
        lambda: start_from(nn.Module(), config, stored.tokenizers.fingerprint),
    ]
    for attempt in attempts:
        with pytest.raises(UserError, match="packed export, whose weights are rounded"):
            attempt()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_description_is_named(packed: Path, tmp_path: Path) -> None:
    with safe_open(str(packed), framework="pt") as file:  # type: ignore[no-untyped-call]
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = dict(file.metadata())
    entries = json.loads(header["ds_seq.packed"])
    name = "decoder.layers.0.cross_attention.query.weight"
    for key, value in [("axis", -1), ("widths", [5]), ("shape", [16]), ("values", "decimal")]:
        changed = {**entries, name: {**entries[name], key: value}}
        if key == "axis":
            changed[name]["widths"] = [7]
        path = tmp_path / f"{key}.safetensors"
        save_file(tensors, str(path), {**header, "ds_seq.packed": json.dumps(changed)})
        with pytest.raises(UserError, match="damaged"):
            load_run(path, "best")


def test_a_model_with_ordinary_maps_is_refused(
    tmp_path: Path, vocab: SentencePieceTokenizer
) -> None:
    config = experiment({})
    model = build_model(config.model, len(vocab), 1, 0, seed=3)
    run = write_run(tmp_path / "run", config, vocab, {10: model})
    with pytest.raises(UserError, match="no weights of one or two bits"):
        export(run, tmp_path / "m.safetensors", "best", form="bitnet")
    assert isinstance(model, Seq2SeqTransformer)
    assert not any(isinstance(module, HoldsBits) for module in model.encoder.layers[0].children())
