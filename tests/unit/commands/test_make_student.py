"""The command `ds-seq make-student`: what it writes, prints and refuses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from ds_seq import cli
from ds_seq.config.criterion import ModelAndBaseConfig
from ds_seq.config.fewer_layers import CopiedLayers
from ds_seq.config.load import load_experiment
from ds_seq.config.model import TransformerConfig
from ds_seq.data.binarize import binarize
from ds_seq.models import build_model
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.runs.open import load_run, open_run
from ds_seq.surgery.prune import moe_layers
from ds_seq.surgery.shrink import make_student, student_config
from ds_seq.surgery.student import STUDENT_KEY
from ds_seq.surgery.upcycle import start_from
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.weights.fill import model_tensors
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab
from tests.unit.runs.made import experiment, write_run
from tests.values import SHARD_SIZE


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs ``dense`` and ``moe`` of 6 and 6 layers, ``vocab.model`` and shards in ``data``."""
    folder = tmp_path_factory.mktemp("lab")
    write_toy(folder / "text", 150, 10)
    sides = folder / "text" / "train.en", folder / "text" / "train.de"
    vocab = train_vocab(sides, folder / "vocab.model", 130)
    (folder / "data").mkdir()
    binarize(
        Tokenizers.shared(vocab),
        *sides,
        folder / "data",
        "train",
        languages=("en", "de"),
        shard_size=SHARD_SIZE,
    )
    lengths = {"max_source_length": 90, "max_target_length": 90}
    moe = {"num_experts": [2, 3, 4, 4, 3, 2], "top_k": 2}
    for name, section in (("dense", None), ("moe", moe)):
        model = {"encoder_layers": 6, "decoder_layers": 6, "moe": section, "max_positions": 100}
        config = experiment(model, **lengths)
        if section is not None:
            criterion = ModelAndBaseConfig(loss_weights={"load_balance": 0.01})
            config = config.model_copy(update={"criterion": criterion})
        write_run(
            folder / name, config, vocab, {1: build_model(config.model, len(vocab), 1, 0, seed=4)}
        )
    return folder


def _call(*arguments: object) -> int:
    return cli.main(["make-student", *map(str, arguments)])


def _record(file: Path) -> dict[str, Any]:
    with safe_open(str(file), framework="pt") as stored:
        record: dict[str, Any] = json.loads(stored.metadata()[STUDENT_KEY])
    return record


def _depths(model: TransformerConfig) -> tuple[int, int]:
    return model.encoder_layers, model.decoder_layers


def test_the_folder_is_the_experiment_of_the_fine_tuning(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student"
    assert _call(lab / "dense", "--out", out, "--encoder-layers", 3, "--decoder-layers", 2) == 0
    printed = capsys.readouterr().out
    teacher, student = load_run(lab / "dense", "best"), load_run(out, "best")
    assert _record(out / "model.safetensors") == {
        "teacher": str(teacher.source), "encoder": [0, 2, 5], "decoder": [0, 5], "merged": {},
    }  # fmt: skip
    layers = CopiedLayers([0, 2, 5], [0, 5])
    config = student_config(teacher.require_experiment(), layers)
    expected = make_student(teacher.model, config, teacher.tokenizers.size, layers)
    tensors = dict(model_tensors(student.model))
    assert all(torch.equal(tensors[name], value) for name, value in model_tensors(expected))
    counts = [sum(p.numel() for p in run.model.parameters()) for run in (teacher, student)]
    share = f"{counts[1] / counts[0]:.1%}"
    assert f"parameters  {counts[0]:,} -> {counts[1]:,} ({share} of" in printed
    assert re.search(r"encoder +layers 0 2 5 +of 6\ndecoder +layers 0 5 +of 6\n", printed)

    tune, teach = (line.split(":", 1)[1] for line in printed.splitlines()[-2:])
    assert shlex.split(tune) == ["ds-seq", "train", str(out / "config.yaml")]
    tuning = load_experiment(*_read_command(tune))
    assert tuning == student.experiment and tuning.train.init_from == str(out)
    assert (
        tuning.data == teacher.require_experiment().data
        and tuning.criterion == teacher.require_experiment().criterion
    )
    started = build_model(tuning.model, teacher.tokenizers.size, 1, 0, seed=9)
    start_from(started, tuning, teacher.tokenizers.fingerprint)
    assert all(torch.equal(tensors[name], value) for name, value in model_tensors(started))
    taught = load_experiment(*_read_command(teach)).criterion.model_dump()
    assert taught["name"] == "distillation" and taught["teacher"] == str(lab / "dense")


def _read_command(line: str) -> tuple[str, list[str]]:
    """Experiment and overrides of a `ds-seq train` command."""
    program, command, file, *overrides = shlex.split(line)
    assert (program, command) == ("ds-seq", "train")
    return file, overrides


def test_a_file_comes_with_equivalent_overrides(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a student.safetensors"
    lists = ("--encoder-copy", "5, 1,4", "--decoder-copy", "3,2")
    assert _call(lab / "moe", "--out", out, *lists, "--dtype", "bf16", "--checkpoint", "last") == 0
    printed = capsys.readouterr().out.splitlines()
    student = load_run(out, "best")
    assert student.model_config.experts_per_layer == [4, 2, 3]
    assert (_record(out)["encoder"], _record(out)["decoder"]) == ([5, 1, 4], [3, 2])
    file, overrides = _read_command(printed[-2].split(":", 1)[1])
    assert file == str(lab / "moe" / "config.yaml")
    assert load_experiment(file, overrides) == student.experiment
    taught = load_experiment(*_read_command(printed[-1].split(":", 1)[1])).criterion.model_dump()
    assert taught["name"] == "model_and_base" and taught["loss_weights"] == {"load_balance": 0.01}
    base = taught["base"]
    teacher = (base["name"], base["teacher"], base["checkpoint"])
    assert teacher == ("distillation", str(lab / "moe"), "last")
    with safe_open(str(out), framework="pt") as stored:
        assert stored.get_slice("target_embedding.weight").get_dtype() == "BF16"
    # a student can be a teacher
    again = tmp_path / "again"
    assert _call(out, "--out", again, "--decoder-layers", 1, "--copy", "first") == 0
    assert _record(again / "model.safetensors")["decoder"] == [0]
    theirs, ours = load_run(out, "best").model, load_run(again, "best").model
    name = "decoder.layers.0.feed_forward.experts.w1"
    assert torch.equal(ours.get_parameter(name), theirs.get_parameter(name))


@pytest.mark.parametrize(
    ("arguments", "encoder", "decoder"),
    [
        (("--encoder-layers", 3), [0, 2, 5], [*range(6)]),
        (("--decoder-layers", 4), [*range(6)], [0, 1, 3, 5]),
        (("--decoder-layers", 4, "--copy", "first"), [*range(6)], [0, 1, 2, 3]),
        (("--decoder-layers", 4, "--copy", "even"), [*range(6)], [0, 2, 3, 5]),
        (("--encoder-layers", 5, "--decoder-layers", 1), [0, 1, 3, 4, 5], [0]),
        (("--encoder-layers", 3, "--encoder-copy", "5,1,1"), [5, 1, 1], [*range(6)]),
        (("--encoder-layers", 6), [*range(6)], [*range(6)]),
    ],
)
def test_layers_by_name_and_by_number(
    lab: Path, tmp_path: Path, arguments: tuple[object, ...], encoder: list[int], decoder: list[int]
) -> None:
    out = tmp_path / "out"
    assert _call(lab / "dense", "--out", out, *arguments) == 0
    record = _record(out / "model.safetensors")
    assert (record["encoder"], record["decoder"]) == (encoder, decoder)
    assert _depths(open_run(out, "best").model_config) == (len(encoder), len(decoder))


def test_experts_are_merged_by_their_use_on_the_data(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = ("--dense", "--data", lab / "data", "--decoder-copy", "1,0")
    for name, more in (("one", ()), ("two", ()), ("few", ("--max-tokens-measured", 30))):
        assert _call(lab / "moe", "--out", tmp_path / name, *dense, *more) == 0
    runs = {name: load_run(tmp_path / name, "best") for name in ("one", "two", "few")}
    assert runs["one"].model_config.moe is None
    assert not any(isinstance(m, MoeFeedForward) for m in runs["one"].model.modules())
    tensors = {name: dict(model_tensors(run.model)) for name, run in runs.items()}
    assert all(torch.equal(tensors["two"][name], value) for name, value in tensors["one"].items())
    up = "encoder.layers.3.feed_forward.up.weight"
    assert not torch.equal(tensors["few"][up], tensors["one"][up])
    merged = _record(tmp_path / "one" / "model.safetensors")["merged"]
    stacks = {"encoder": (1, 3, 5), "decoder": (1,)}
    assert list(merged) == [f"{s}.layers.{n}.feed_forward" for s in stacks for n in stacks[s]]
    assert [len(shares) for shares in merged.values()] == [2, 3, 4, 4]
    assert all(sum(shares) == pytest.approx(1.0) for shares in merged.values())
    teacher = load_run(lab / "moe", "best").model
    experts = moe_layers(teacher)["encoder.layers.3.feed_forward"].experts
    shares = torch.tensor(merged["encoder.layers.3.feed_forward"])
    average = torch.einsum("e,edh->hd", shares, experts.w1)
    torch.testing.assert_close(tensors["one"][up], average)
    gate_free = [name for name in tensors["one"] if ".gate." in name or ".experts." in name]
    assert not gate_free
    assert re.search(r"layers\.5\.feed_forward  [\d.]+% ", capsys.readouterr().out)


def test_the_sentences_measured_are_from_all_over_the_data(lab: Path, tmp_path: Path) -> None:
    shares = []
    for changed in (False, True):
        folder = tmp_path / str(changed)
        folder.mkdir()
        for side in ("en", "de"):
            lines = (lab / "text" / f"train.{side}").read_text().splitlines(keepends=True)
            lines[100:] = lines[:1] * 50 if changed else lines[100:]
            (folder / side).write_text("".join(lines))
        vocab = SentencePieceTokenizer.load(lab / "vocab.model")
        binarize(
            Tokenizers.shared(vocab),
            folder / "en",
            folder / "de",
            folder,
            "train",
            languages=("en", "de"),
            shard_size=SHARD_SIZE,
        )
        dense = ("--dense", "--data", folder, "--max-tokens-measured", 100)
        assert _call(lab / "moe", "--out", folder / "out", *dense) == 0
        shares.append(_record(folder / "out" / "model.safetensors")["merged"])
    assert shares[0] != shares[1]


def test_layers_without_experts_need_no_measuring(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = ("--encoder-copy", "0,2", "--decoder-copy", "4")
    out = tmp_path / "out"
    assert _call(lab / "moe", "--out", out, "--dense", "--data", lab / "data", *lists) == 0
    assert load_run(out, "best").model_config.moe is None
    assert "measure" not in capsys.readouterr().err


def test_bad_input_is_one_line_and_writes_nothing(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("what was there")
    other = tmp_path / "other"
    other.mkdir()
    sides = lab / "text" / "train.de", lab / "text" / "train.en"
    binarize(
        Tokenizers.shared(SentencePieceTokenizer(_other_vocab(lab, tmp_path))),
        *sides,
        other,
        "train",
        languages=("de", "en"),
        shard_size=SHARD_SIZE,
    )
    data = ("--data", str(lab / "data"))
    cases: list[tuple[str, tuple[str, ...], str]] = [
        ("dense", (), "nothing to shrink"),
        ("moe", data, "nothing to shrink"),
        ("nowhere", ("--encoder-layers", "1"), "no such run folder"),
        ("dense", ("--encoder-layers", "7"), "--encoder-layers 7: must be from 1 to 6"),
        ("dense", ("--decoder-layers", "0"), "--decoder-layers 0: must be from 1 to 6"),
        ("dense", ("--encoder-copy", "0,6"), "there is no layer 6; the teacher's encoder has 6"),
        ("dense", ("--decoder-copy", "0,,1"), "--decoder-copy 0,,1: give layers of the teacher"),
        ("dense", ("--decoder-copy", "-1"), "give layers of the teacher"),
        ("dense", ("--decoder-copy", ""), "give layers of the teacher"),
        ("dense", ("--decoder-copy", "0," * 6 + "0"), "names more layers than the 6"),
        ("dense", ("--encoder-copy", "0,2", "--encoder-layers", "3"), "names 2 layers, but"),
        ("dense", ("--encoder-layers", "3", "--out", str(taken)), "taken: exists already"),
        ("dense", ("--dense", *data), "dense: is a dense model"),
        ("moe", ("--dense",), "add --data SHARDS"),
        ("moe", ("--encoder-layers", "3", *data), "give both or neither"),
        ("moe", ("--dense", *data, "--max-tokens-measured", "0"), "must be at least 1"),
        ("moe", ("--dense", *data, "--split", "test"), "test.manifest.json"),
        ("moe", ("--dense", "--data", str(other)), "made with vocabulary"),
        ("moe", ("--encoder-layers", "3", "--checkpoint", "update_9"), "no checkpoint 'update_9'"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for run, arguments, message in cases:
        words = [str(lab / run), "--out", str(tmp_path / "out"), *arguments]
        assert cli.main(["make-student", *words]) == 2, message
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1 and message in errors[0], errors
    assert sorted(tmp_path.rglob("*")) == before
    assert taken.read_text() == "what was there"


def _other_vocab(lab: Path, folder: Path) -> bytes:
    sides = lab / "text" / "train.en", lab / "text" / "train.de"
    return train_vocab(sides, folder / "other.model", 120).to_bytes()
