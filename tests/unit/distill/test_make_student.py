"""Students made of some layers of a teacher: weights, experiment and the command."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ds_seq import cli
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import load_experiment
from ds_seq.config.model import ModelConfig
from ds_seq.config.objective import ModelAndBaseConfig
from ds_seq.data.binarize import binarize
from ds_seq.data.vocab import Vocab, train_vocab
from ds_seq.distill.make_student import STUDENT_KEY, fine_tuning
from ds_seq.distill.merge_experts import ExpertUse, merge_experts
from ds_seq.distill.shrink import CopiedLayers, make_student, student_config
from ds_seq.errors import UserError
from ds_seq.interop.prune import moe_layers
from ds_seq.interop.run_folder import load_run, open_run
from ds_seq.interop.upcycle import start_from
from ds_seq.models import build_model
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.models.weights import model_tensors
from ds_seq.moe.layer import MoeFeedForward
from tests.data.toy import write_toy
from tests.unit.interop.made import experiment, write_run

VOCAB = 40
MOE = {"num_experts": 4, "top_k": 2}
BRANCHES: dict[str, dict[str, Any]] = {
    "residual": {"residual": True},
    "shared": {"shared_experts": 2},
    "conditional": {"conditional_budget": 0.5},
}
KINDS: dict[str, dict[str, Any]] = {
    "pre": {"norm_position": "pre"},
    "untied": {"share_embeddings": "none", "positions": "learned"},
    "half tied": {"share_embeddings": "decoder", "positions": "rotary"},
    "swiglu": {"activation": "swiglu", "norm_position": "pre"},
    "experts": {"moe": {**MOE, "every": 2}},
    "pyramid": {"moe": {**MOE, "num_experts": [2, 3, 4, 5, 6], "every": 2}, "encoder_layers": 6},
    "sigmoid": {"moe": {**MOE, "router": "sigmoid", "every": 1}},
    "cosine": {"moe": {"router": "cosine", "num_experts": [40, 4, 6], "layers": {"encoder": [0, 3],
               "decoder": [2]}}},
    "expert_choice": {"moe": {**MOE, "router": "expert_choice", "placement": "encoder"}},
    "language": {"moe": {**MOE, "router": "language"}},
    **{name: {"moe": {**MOE, **section, "every": 3}} for name, section in BRANCHES.items()},
}  # fmt: skip


def _teacher(**model: Any) -> tuple[Seq2SeqTransformer, ExperimentConfig]:
    depths = {"encoder_layers": 5, "decoder_layers": 4, "max_positions": 32, "dropout": 0.0}
    config = experiment({**depths, **model}, vocab={"user_symbols": ["<2de>"]})
    teacher = build_model(config.model, VOCAB, seed=3).eval()
    assert isinstance(teacher, Seq2SeqTransformer)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, value in model_tensors(teacher):  # as if trained: no bias is 0, no scale is 1
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
            else:
                value.copy_(torch.randint(-300, 300, value.shape, generator=generator))
    return teacher, config


def _made(
    teacher: nn.Module, config: ExperimentConfig, layers: CopiedLayers
) -> tuple[Seq2SeqTransformer, ExperimentConfig]:
    new = student_config(config, layers)
    student = make_student(teacher, new, VOCAB, layers)
    assert isinstance(student, Seq2SeqTransformer) and not student.training
    return student, new


@torch.no_grad()
def _logits(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    src, tgt = (torch.randint(4, VOCAB, (3, n), generator=generator) for n in (7, 6))
    src[1, 4:] = tgt[2, 3:] = 1
    logits: Tensor = model(src, tgt, tgt != 1).logits
    return logits


def _all(config: ExperimentConfig) -> CopiedLayers:
    model = config.model
    return CopiedLayers([*range(model.encoder_layers)], [*range(model.decoder_layers)])


def _drawn(config: ExperimentConfig, seed: int) -> CopiedLayers:
    """Some layers in some order, maybe one of them twice."""
    source = random.Random(seed)
    chosen = []
    for depth in (config.model.encoder_layers, config.model.decoder_layers):
        count = source.randint(1, depth)
        chosen.append(source.choices(range(depth), k=count))
    return CopiedLayers(*chosen)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_all_layers_is_its_teacher(kind: str) -> None:
    teacher, config = _teacher(**KINDS[kind])
    student, new = _made(teacher, config, _all(config))
    assert torch.equal(_logits(student), _logits(teacher))
    ours, theirs = student.state_dict(), teacher.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert new.model.experts_per_layer == config.model.experts_per_layer


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_is_the_one_it_was_copied_from(kind: str, seed: int) -> None:
    teacher, config = _teacher(**KINDS[kind])
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    layers = _drawn(config, seed)
    student, new = _made(teacher, config, layers)
    assert new.model.encoder_layers == len(student.encoder.layers) == len(layers.encoder)
    assert new.model.decoder_layers == len(student.decoder.layers) == len(layers.decoder)
    for ours, theirs, copied in (
        (student.encoder, teacher.encoder, layers.encoder),
        (student.decoder, teacher.decoder, layers.decoder),
    ):
        for layer, source in zip(ours.layers, copied, strict=True):
            expected = theirs.layers[source].state_dict()
            found = layer.state_dict()
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], value) for name, value in expected.items())
    found = student.state_dict()
    rest = {name for name in before if ".layers." not in name}
    assert rest == {name for name in found if ".layers." not in name}
    assert all(torch.equal(found[name], before[name]) for name in rest)
    # and the teacher without its other layers computes the same
    teacher.encoder.layers = nn.ModuleList([teacher.encoder.layers[i] for i in layers.encoder])
    teacher.decoder.layers = nn.ModuleList([teacher.decoder.layers[i] for i in layers.decoder])
    assert torch.equal(_logits(student), _logits(teacher))


def test_the_teacher_stays_as_it_is() -> None:
    teacher, config = _teacher(**KINDS["sigmoid"])
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    layers = CopiedLayers([1], [2])
    student, _ = _made(teacher, config, layers)
    for _, value in model_tensors(student):
        value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_experiment_says_where_experts_are_now() -> None:
    moe = {**MOE, "num_experts": [2, 3, 4, 5, 6], "every": 2}
    _, config = _teacher(encoder_layers=6, decoder_layers=4, moe=moe)
    model = student_config(config, CopiedLayers([5, 0, 3], [2, 1])).model
    assert (model.moe_layers("encoder"), model.moe_layers("decoder")) == ([0, 2], [1])
    assert model.experts_per_layer == [4, 3, 5]
    alike = student_config(config, CopiedLayers([1], [0])).model
    assert alike.moe is not None and alike.moe.num_experts == 2
    changed = {"encoder_layers", "decoder_layers", "moe"}
    assert model.model_dump(exclude=changed) == config.model.model_dump(exclude=changed)


def test_without_experts_nothing_is_said_about_them() -> None:
    _, config = _teacher(moe=MOE)
    settings = {"expert_parallel": 2, "sparse_clip": True, "clip_norm": 1.0}
    config = config.model_copy(update={"train": config.train.model_copy(update=settings)})
    dense = student_config(config, CopiedLayers([0, 2], [2]))
    assert dense.model.moe is None
    assert dense.train.expert_parallel == 1 and not dense.train.sparse_clip
    sparse = student_config(config, CopiedLayers([0, 2], [1]))
    assert sparse.train.expert_parallel == 2 and sparse.train.sparse_clip


@pytest.mark.parametrize("nested", [False, True])
def test_the_layers_that_the_teacher_imitated_are_those_of_its_student(nested: bool) -> None:
    _, config = _teacher()
    hidden = {"encoder": [2, 5, 7, 9, 11], "decoder": []}
    attention = {"decoder": [1, 3, 5, 7], "match": "even"}
    criterion: dict[str, Any] = {
        "name": "distillation", "teacher": "big", "hidden": hidden, "attention": attention,
    }  # fmt: skip
    if nested:
        criterion = {"name": "model_and_base", "base": criterion}
    data = {**config.model_dump(mode="json"), "criterion": criterion}
    new = student_config(ExperimentConfig.model_validate(data), CopiedLayers([4, 0], [3, 1]))
    found = new.model_dump(mode="json")["criterion"]
    found = found["base"] if nested else found
    assert found["hidden"]["encoder"] == [11, 2] and found["hidden"]["decoder"] == []
    assert found["attention"]["encoder"] is None and found["attention"]["decoder"] == [7, 3]


def test_a_model_from_elsewhere_is_refused() -> None:
    _, config = _teacher()
    with pytest.raises(UserError, match="does not know where the layers of Linear are"):
        make_student(nn.Linear(1, 1), config, VOCAB, _all(config))


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
@pytest.mark.parametrize("branch", [None, "shared"])
@pytest.mark.parametrize("router", ["softmax", "cosine", "sigmoid", "language"])
def test_a_merged_model_of_equal_experts_gives_the_logits_of_its_teacher(
    router: str, branch: str | None, activation: str
) -> None:
    moe = {**MOE, "num_experts": [2, 3, 4, 2, 4, 3, 2, 3, 2], "router": router, "every": 1}
    moe |= BRANCHES[branch] if branch else {}
    teacher, config = _teacher(moe=moe, activation=activation)
    use = {}
    for name, layer in moe_layers(teacher).items():
        with torch.no_grad():
            for parameter in layer.experts.parameters():
                parameter.copy_(parameter[:1].expand_as(parameter))
        weights = torch.arange(1.0, layer.num_experts + 1).double()
        use[name] = ExpertUse(weights / weights.sum(), 0.0)
    merged = {n: merge_experts(layer, use[n]) for n, layer in moe_layers(teacher).items()}
    layers = _all(config)
    new = student_config(config, layers, dense=True)
    student = make_student(teacher, new, VOCAB, layers, merged)
    assert new.model.moe is None and new.model.ffn_dim == 24 * (3 if branch else 1)
    torch.testing.assert_close(_logits(student), _logits(teacher), rtol=1e-5, atol=1e-5)


def test_dense_layers_must_come_out_alike() -> None:
    _, config = _teacher(moe={**MOE, "ffn_dim": 8, "shared_experts": 2})
    for layers, width in (([1, 3], [1]), 24), (([0, 2], [0]), 24):
        made = student_config(config, CopiedLayers(*layers), dense=True)
        assert made.model.ffn_dim == width and made.model.moe is None
    _, config = _teacher(moe={**MOE, "ffn_dim": 8})
    assert student_config(config, CopiedLayers([3], [1, 3]), dense=True).model.ffn_dim == 8
    assert student_config(config, CopiedLayers([2], [0, 2]), dense=True).model.ffn_dim == 24
    with pytest.raises(UserError, match="becomes 8 wide, the others are 24 .*encoder .1, 3., dec"):
        student_config(config, CopiedLayers([0], [1]), dense=True)


def test_the_fine_tuning_has_a_run_folder_of_its_own() -> None:
    _, config = _teacher()
    config = config.model_copy(update={"run_dir": "runs/teacher"})
    for out, name in (("runs/a b.2", "a_b.2"), ("runs/small.safetensors", "small")):
        tuning = fine_tuning(config, Path(out))
        assert tuning.name == f"{name}-tuned" and tuning.train.init_from == out
        assert tuning.run_folder == Path("runs") / f"{name}-tuned"
        ExperimentConfig.model_validate(tuning.model_dump())


# the command


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs ``dense`` and ``moe`` of 6 and 6 layers, ``vocab.model`` and shards in ``data``."""
    folder = tmp_path_factory.mktemp("lab")
    write_toy(folder / "text", 150, 10)
    sides = folder / "text" / "train.en", folder / "text" / "train.de"
    vocab = train_vocab(sides, folder / "vocab.model", 130)
    (folder / "data").mkdir()
    binarize(vocab, *sides, folder / "data", "train", languages=("en", "de"))
    lengths = {"max_source_length": 90, "max_target_length": 90}
    moe = {"num_experts": [2, 3, 4, 4, 3, 2], "top_k": 2}
    for name, section in (("dense", None), ("moe", moe)):
        model = {"encoder_layers": 6, "decoder_layers": 6, "moe": section, "max_positions": 100}
        config = experiment(model, **lengths)
        if section is not None:
            criterion = ModelAndBaseConfig(loss_weights={"load_balance": 0.01})
            config = config.model_copy(update={"criterion": criterion})
        write_run(folder / name, config, vocab, {1: build_model(config.model, len(vocab), seed=4)})
    return folder


def _call(*arguments: object) -> int:
    return cli.main(["make-student", *map(str, arguments)])


def _record(file: Path) -> dict[str, Any]:
    with safe_open(str(file), framework="pt") as stored:
        record: dict[str, Any] = json.loads(stored.metadata()[STUDENT_KEY])
    return record


def _depths(model: ModelConfig) -> tuple[int, int]:
    return model.encoder_layers, model.decoder_layers


def test_the_folder_is_the_experiment_of_the_fine_tuning(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student"
    assert _call(lab / "dense", "--out", out, "--encoder-layers", 3, "--decoder-layers", 2) == 0
    printed = capsys.readouterr().out
    teacher, student = load_run(lab / "dense"), load_run(out)
    assert _record(out / "model.safetensors") == {
        "teacher": str(teacher.source), "encoder": [0, 2, 5], "decoder": [0, 5], "merged": {},
    }  # fmt: skip
    layers = CopiedLayers([0, 2, 5], [0, 5])
    config = student_config(teacher.config, layers)
    expected = make_student(teacher.model, config, len(teacher.vocab), layers)
    tensors = dict(model_tensors(student.model))
    assert all(torch.equal(tensors[name], value) for name, value in model_tensors(expected))
    counts = [sum(p.numel() for p in run.model.parameters()) for run in (teacher, student)]
    share = f"{counts[1] / counts[0]:.1%}"
    assert f"parameters  {counts[0]:,} -> {counts[1]:,} ({share} of" in printed
    assert re.search(r"encoder +layers 0 2 5 +of 6\ndecoder +layers 0 5 +of 6\n", printed)

    tune, teach = (line.split(":", 1)[1] for line in printed.splitlines()[-2:])
    assert shlex.split(tune) == ["ds-seq", "train", str(out / "config.yaml")]
    tuning = load_experiment(*_read_command(tune))
    assert tuning == student.config and tuning.train.init_from == str(out)
    assert tuning.data == teacher.config.data and tuning.criterion == teacher.config.criterion
    started = build_model(tuning.model, len(teacher.vocab), seed=9)
    start_from(started, tuning, teacher.vocab)
    assert all(torch.equal(tensors[name], value) for name, value in model_tensors(started))
    taught = load_experiment(*_read_command(teach)).criterion.model_dump()
    assert taught["name"] == "distillation" and taught["teacher"] == str(lab / "dense")


def _read_command(line: str) -> tuple[str, list[str]]:
    """Experiment and overrides of a `ds-seq train` command."""
    program, command, file, *overrides = shlex.split(line)
    assert (program, command) == ("ds-seq", "train")
    return file, overrides


def test_a_file_comes_with_the_overrides_that_say_the_same(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a student.safetensors"
    lists = ("--encoder-copy", "5, 1,4", "--decoder-copy", "3,2")
    assert _call(lab / "moe", "--out", out, *lists, "--dtype", "bf16", "--checkpoint", "last") == 0
    printed = capsys.readouterr().out.splitlines()
    student = load_run(out)
    assert student.config.model.experts_per_layer == [4, 2, 3]
    assert (_record(out)["encoder"], _record(out)["decoder"]) == ([5, 1, 4], [3, 2])
    file, overrides = _read_command(printed[-2].split(":", 1)[1])
    assert file == str(lab / "moe" / "config.yaml")
    assert load_experiment(file, overrides) == student.config
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
    theirs, ours = load_run(out).model, load_run(again).model
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
    assert _depths(open_run(out).config.model) == (len(encoder), len(decoder))


def test_experts_are_merged_by_their_use_on_the_data(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = ("--dense", "--data", lab / "data", "--decoder-copy", "1,0")
    for name, more in (("one", ()), ("two", ()), ("few", ("--max-tokens-measured", 30))):
        assert _call(lab / "moe", "--out", tmp_path / name, *dense, *more) == 0
    runs = {name: load_run(tmp_path / name) for name in ("one", "two", "few")}
    assert runs["one"].config.model.moe is None
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
    teacher = load_run(lab / "moe").model
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
        vocab = Vocab.load(lab / "vocab.model")
        binarize(vocab, folder / "en", folder / "de", folder, "train", languages=("en", "de"))
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
    assert load_run(out).config.model.moe is None
    assert "measure" not in capsys.readouterr().err


def test_bad_input_is_one_line_and_writes_nothing(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("what was there")
    other = tmp_path / "other"
    other.mkdir()
    sides = lab / "text" / "train.de", lab / "text" / "train.en"
    binarize(Vocab(_other_vocab(lab, tmp_path)), *sides, other, "train", languages=("de", "en"))
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
        ("moe", ("--dense",), "give --data SHARDS"),
        ("moe", ("--encoder-layers", "3", *data), "give both or none"),
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
