"""Students made of some layers of a teacher: their weights and their experiment."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.fewer_layers import CopiedLayers
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.surgery.merge import ExpertUse, merge_experts
from ds_seq.surgery.prune import moe_layers
from ds_seq.surgery.shrink import make_student, student_config
from ds_seq.surgery.student import fine_tuning
from ds_seq.weights.fill import model_tensors
from tests.batches import inputs_of, mark_every_third
from tests.unit.runs.made import experiment

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
    "multiway": {"moe": {**MOE, "every": 2}, "multiway": {"markers": {"a": 0, "b": 1}}},
    **{name: {"moe": {**MOE, **section, "every": 3}} for name, section in BRANCHES.items()},
}  # fmt: skip


def _teacher(**model: Any) -> tuple[Seq2SeqTransformer, ExperimentConfig]:
    depths = {"encoder_layers": 5, "decoder_layers": 4, "max_positions": 32, "dropout": 0.0}
    config = experiment({**depths, **model}, vocab={"user_symbols": ["<2de>"]})
    teacher = build_model(config.model, VOCAB, 1, 0, seed=3).eval()
    assert isinstance(teacher, Seq2SeqTransformer)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, value in model_tensors(teacher):  # as if trained: no bias is 0, no scale is 1
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
            else:
                value.copy_(torch.randint(-300, 300, value.shape, generator=generator))
    mark_every_third(teacher)
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
    logits: Tensor = model(inputs_of(src, tgt)).logits
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


def test_without_experts_nothing_is_reported_about_them() -> None:
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
@pytest.mark.parametrize(
    ("router", "branch"),
    [
        *product(["softmax", "cosine", "sigmoid", "language"], [None, "shared"]),
        ("softmax", "multiway"),
    ],
)
def test_a_merged_model_of_equal_experts_gives_the_logits_of_its_teacher(
    router: str, branch: str | None, activation: str
) -> None:
    moe = {**MOE, "num_experts": [2, 3, 4, 2, 4, 3, 2, 3, 2], "router": router, "every": 1}
    moe |= BRANCHES["shared"] if branch == "shared" else {}
    more = KINDS["multiway"] if branch == "multiway" else {}
    teacher, config = _teacher(**{**more, "moe": moe}, activation=activation)
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
    assert new.model.moe is None and new.model.ffn_dim == 24 * (3 if branch == "shared" else 1)
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


def test_fine_tuning_has_a_separate_run_folder() -> None:
    _, config = _teacher()
    config = config.model_copy(update={"run_dir": "runs/teacher"})
    for out, name in (("runs/a b.2", "a_b.2"), ("runs/small.safetensors", "small")):
        tuning = fine_tuning(config, Path(out))
        assert tuning.name == f"{name}-tuned" and tuning.train.init_from == out
        assert tuning.run_folder == Path("runs") / f"{name}-tuned"
        ExperimentConfig.model_validate(tuning.model_dump())


# the command
