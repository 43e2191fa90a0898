"""Teachers: what they say is theirs, they learn nothing, and those that do not fit are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ds_seq.config.distillation import DistillationConfig
from ds_seq.criterions import build_criterion
from ds_seq.data.batch import Batch, empty_seq2seq_batch
from ds_seq.distill import teacher as teacher_module
from ds_seq.distill.build import build_teacher
from ds_seq.distill.teacher import LiveTeacher, Student
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.models.output import LayerOutputs, ModelOutput
from ds_seq.names import Capture
from ds_seq.runs.card import LoadedRun, ModelCard
from ds_seq.runs.export import export
from ds_seq.runs.open import load_run
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Symbols
from tests.batches import batch_of
from tests.data.toy import toy_pairs
from tests.data.vocabulary import train_vocab
from tests.unit.runs.made import experiment, write_run

CPU = torch.device("cpu")
POSITIONS = 20
MODELS: dict[str, dict[str, Any]] = {
    "dense": {"dropout": 0.5, "attention_dropout": 0.5, "encoder_layers": 3},
    "moe": {"moe": {"num_experts": [2, 4]}, "d_model": 24},
    "other": {"decoder_layers": 1},
    "retention": {"decoder_mixer": "retention"},
}


class Lab(NamedTuple):
    folder: Path
    vocab: SentencePieceTokenizer

    def settings(self, *names: str, **more: Any) -> DistillationConfig:
        return DistillationConfig(teacher=[str(self.folder / name) for name in names], **more)

    def load(self, *names: str, student: Student | None = None, **more: Any) -> LiveTeacher:
        return build_teacher(self.settings(*names, **more), self.vocab.fingerprint, CPU, student)

    def student(self, max_length: int = 8, **model: Any) -> Student:
        return Student(experiment(model).model, max_length, ("en", "de"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Runs of all models, which are read-only."""
    folder = tmp_path_factory.mktemp("lab")
    lines = "".join(f"{line}\n" for pair in toy_pairs(60) for line in pair)
    (folder / "text").write_text(lines, encoding="utf-8")
    vocab = train_vocab([folder / "text"], folder / "vocab.model", 130)
    for seed, (name, model) in enumerate(MODELS.items()):
        config = experiment({"max_positions": POSITIONS, **model})
        made = build_model(config.model, len(vocab), 1, 0, seed=seed)
        write_run(folder / name, config, vocab, {1: made})
    return Lab(folder, vocab)


def batch(seed: int = 0, rows: int = 4, length: int = 7) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    src, tgt = torch.randint(4, 130, (2, rows, length), generator=generator)
    src[0, 4:], tgt[1, 3:] = 1, 1
    return batch_of(src, tgt)


def direct(lab: Lab, name: str, item: Batch) -> Tensor:
    """The model's own answer."""
    model = load_run(lab.folder / name, "best").model
    logits: Tensor = model(item.inputs).logits
    return logits


class Fixed(nn.Module):
    """Returns given outputs."""

    def __init__(self, logits: Tensor, layers: LayerOutputs | None = None) -> None:
        super().__init__()
        self.logits, self.layers, self.calls = logits, layers, list[tuple[Any, ...]]()

    def forward(self, *inputs: Any) -> ModelOutput:
        self.calls.append(inputs)
        return ModelOutput(self.logits.clone(), {}, [], self.layers)


def fixed(*models: Fixed, **more: Any) -> LiveTeacher:
    config = experiment({})
    card = ModelCard.of_experiment(config, None)  # type: ignore[arg-type]
    runs = [LoadedRun(card, config.model, m, Path("x"), config) for m in models]
    return LiveTeacher(runs, **more)


@pytest.mark.parametrize("name", MODELS)
def test_a_teacher_says_what_its_model_says(lab: Lab, name: str) -> None:
    item = batch()
    teacher = lab.load(name)
    output = teacher(item)
    assert output.logits is not None and output.top is None and output.layers is None
    torch.testing.assert_close(output.logits, direct(lab, name, item), rtol=0, atol=1e-5)
    assert not output.logits.requires_grad
    again = teacher(item).logits
    assert again is not None and torch.equal(again, output.logits), "dropout is off"
    assert name in teacher.describe() and "\n" not in teacher.describe()


def test_an_exported_file_is_a_teacher(lab: Lab, tmp_path: Path) -> None:
    export(lab.folder / "moe", tmp_path / "moe.safetensors", "best")
    settings = DistillationConfig(teacher=str(tmp_path / "moe.safetensors"))
    output = build_teacher(settings, lab.vocab.fingerprint, CPU, None)(batch()).logits
    assert output is not None
    torch.testing.assert_close(output, direct(lab, "moe", batch()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("numbers", [1, 300, 1 << 18])
def test_an_ensemble_says_the_mean_of_probabilities(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, numbers: int
) -> None:
    monkeypatch.setattr(teacher_module, "_CPU_NUMBERS", numbers)
    item = batch()
    output = lab.load(*MODELS)(item).logits
    assert output is not None and output.dtype == torch.float32
    each = [direct(lab, name, item).double().softmax(1) for name in MODELS]
    expected = torch.stack(each).mean(0)
    torch.testing.assert_close(output.double().exp(), expected, rtol=1e-5, atol=1e-9)
    # log-probabilities, which softmax takes as it takes logits
    torch.testing.assert_close(output.double().softmax(1), expected, rtol=1e-5, atol=1e-9)


def test_an_ensemble_of_teachers_that_are_sure_of_themselves_stays_finite() -> None:
    first, second = Fixed(torch.tensor([[0.0, 500.0]])), Fixed(torch.tensor([[0.0, 300.0]]))
    output = fixed(first, second)(batch()).logits
    assert output is not None and torch.isfinite(output).all()
    assert output[0, 0].item() == pytest.approx(-300 - torch.log(torch.tensor(2.0)).item())


def test_an_ensemble_of_half_precision_is_averaged_in_fp32(lab: Lab) -> None:
    item = batch()
    output = lab.load("dense", "other", teacher_precision="bf16")(item).logits
    assert output is not None and output.dtype == torch.float32
    alone = lab.load("dense", teacher_precision="bf16")
    assert {p.dtype for p in alone.runs[0].model.parameters()} == {torch.bfloat16}
    expected = lab.load("dense", "other")(item).logits
    assert expected is not None
    torch.testing.assert_close(output.exp(), expected.exp(), rtol=0.1, atol=1e-2)
    assert not torch.equal(output, expected)


@pytest.mark.parametrize("capture", ["hidden", "attention"])
def test_layer_outputs_are_returned_when_requested(lab: Lab, capture: str) -> None:
    asked: dict[str, Any] = {capture: {}}
    layers = lab.load("dense", **asked)(batch()).layers
    assert layers is not None and len(layers.encoder) == 3 and len(layers.decoder) == 2
    assert bool(layers.encoder_attention) == (capture == "attention")


def test_a_batch_without_sentences_is_accepted() -> None:
    empty = empty_seq2seq_batch(Symbols(pad=1, eos=2, unk=3, start=2))
    model = Fixed(torch.zeros(0, 5))
    output = fixed(model, model)(empty).logits
    assert len(model.calls) == 2 and output is not None and output.shape == (0, 5)


@pytest.mark.parametrize("capture", ["none", "hidden"])
def test_a_model_is_handed_the_inputs_and_what_to_capture(capture: Capture) -> None:
    model, item = Fixed(torch.zeros(1, 5)), batch()
    fixed(model, capture=capture)(item)
    ((inputs, asked),) = model.calls
    assert inputs is item.inputs and asked == capture


def test_a_teacher_learns_nothing(lab: Lab) -> None:
    settings = lab.settings("dense", "moe", "other", strategy="batch_level")
    teacher = build_teacher(settings, lab.vocab.fingerprint, CPU, None)
    before = [{n: p.clone() for n, p in r.model.state_dict().items()} for r in teacher.runs]
    student = build_model(experiment({"dropout": 0.1}).model, len(lab.vocab), 1, 0, seed=9).train()
    criterion = build_criterion(settings, teacher)
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    losses = []
    for step in range(5):
        item = batch(step % 2)
        output = student(item.inputs)
        loss = criterion(output, item).total
        optimizer.zero_grad()
        (loss / item.num_tokens).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for run, old in zip(teacher.runs, before, strict=True):
        assert not run.model.training and not any(m.training for m in run.model.modules())
        for name, parameter in run.model.named_parameters():
            assert parameter.grad is None and not parameter.requires_grad, name
        for name, value in run.model.state_dict().items():
            assert torch.equal(value, old[name]), name


def test_another_vocabulary_is_refused(lab: Lab) -> None:
    settings = lab.settings("dense", "other")
    with pytest.raises(UserError, match=r"teacher \S+dense: has vocabulary \w{12}, the data 0{12}"):
        build_teacher(settings, "0" * 64, CPU, None)


@pytest.mark.parametrize(
    ("more", "student", "message"),
    [
        ({}, {"max_length": 21}, "reads 20 tokens, but examples may have 21"),
        ({"hidden": {}}, {"d_model": 32}, "d_model 16, the student 32"),
        ({"hidden": {}}, {"encoder_layers": 4}, "hidden, encoder: "),
        ({"attention": {}}, {"decoder_layers": 3}, "attention, decoder: "),
        ({"attention": {"encoder": [0, 3]}}, {}, "attention.encoder names layer 3, but"),
        ({"hidden": {"decoder": [2, 0]}}, {}, "hidden.decoder names layer 2, but its 2 layers"),
    ],
)
def test_a_teacher_that_does_not_suit_the_student_is_refused(
    lab: Lab, more: dict[str, Any], student: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=r"teacher \S+dense: ") as error:
        lab.load("dense", student=lab.student(**student), **more)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("more", "student"),
    [
        ({}, {"max_length": 20, "d_model": 32, "encoder_layers": 9, "decoder_layers": 9}),
        ({"attention": {}}, {"d_model": 32}),
        ({"hidden": {"encoder": [2, 0]}}, {"encoder_layers": 2}),
        ({"hidden": {"encoder": []}}, {"encoder_layers": 9}),
    ],
)
def test_a_teacher_that_suits_the_student_is_not(
    lab: Lab, more: dict[str, Any], student: dict[str, Any]
) -> None:
    lab.load("dense", student=lab.student(**student), **more)


def test_a_teacher_without_attention_maps_is_refused_if_they_are_learned(lab: Lab) -> None:
    with pytest.raises(UserError, match="its layers have no attention maps of the kind decoder"):
        lab.load("retention", student=lab.student(), attention={})
    lab.load("retention", student=lab.student(), attention={"kinds": ["encoder", "cross"]})


def test_experts_that_cannot_be_dealt_out_are_refused(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="over 2 ranks, which do not divide the 1 process"):
        lab.load("moe", teacher_expert_parallel=2)
    monkeypatch.setattr(teacher_module.distributed, "world_size", lambda: 4)
    with pytest.raises(UserError, match=r"2 experts \(layer 1 of the encoder\)"):
        teacher_module._check("x", _stored(lab, "moe"), lab.vocab.fingerprint, 4)
    teacher_module._check("x", _stored(lab, "moe"), lab.vocab.fingerprint, 2)
    teacher_module._check("x", _stored(lab, "dense"), lab.vocab.fingerprint, 4)


def _stored(lab: Lab, name: str) -> Any:
    return teacher_module.open_run(lab.folder / name, "best")


def test_a_teacher_that_is_not_there_is_named(lab: Lab) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such run folder"):
        lab.load("dense", "nowhere")
