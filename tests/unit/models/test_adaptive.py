"""Adaptive input and softmax: their definition, gradients, ranks, sizes, refused settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from ds_seq.config.criterion import CrossEntropyConfig, ModelAndBaseConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.flops import forward_flops
from ds_seq.config.model import DecoderOnlyConfig
from ds_seq.criterions import build_criterion
from ds_seq.criterions.base import Current
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.data.batch import Batch
from ds_seq.data.source import TokenBlock
from ds_seq.data.text_batch import text_batch
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.text.tokenizer import Symbols

VOCAB, WIDTH = 23, 16
SYMBOLS = Symbols(pad=1, eos=2, unk=3, start=2)
BANDS: dict[str, Any] = {"cutoffs": [7, 12, 20], "factor": 2}
KINDS: dict[str, dict[str, Any]] = {
    "tied": {"adaptive": {**BANDS, "tie_projections": True}},
    "tied tables": {"adaptive": BANDS},
    "apart": {"adaptive": BANDS, "share_embeddings": "none"},
    "softmax alone": {"adaptive": {**BANDS, "input": False}, "share_embeddings": "none"},
}
TEXTS = [[5, 13, 7, 8, 2], [9, 10, 2], [11, 19, 2]]  # no token of the last band


def make(kind: str, **options: Any) -> Any:
    section = config(**KINDS[kind], **options)
    return build_model(section, VOCAB, 1, 0, seed=1)


def config(**options: Any) -> DecoderOnlyConfig:
    sizes = {"d_model": WIDTH, "decoder_layers": 1, "num_heads": 2, "ffn_dim": 8, "dropout": 0.0}
    return DecoderOnlyConfig.model_validate({"name": "decoder_only", **sizes, **options})


def make_batch(texts: list[list[int]] = TEXTS) -> Batch:
    return text_batch(TokenBlock.of(texts), SYMBOLS)


def embedded(model: Any, tokens: Tensor) -> Tensor:
    """Adaptive input by definition: one large table of all bands, projected."""
    table = torch.cat([band.weight @ band.projection.T for band in model.target_embedding.bands])
    return 4.0 * table[tokens]  # sqrt(WIDTH)


def by_definition(model: Any, kind: str, hidden: Tensor) -> Tensor:
    """Probabilities (N, V): that of the band times that of the token within it."""
    bands = (model.target_embedding if kind.startswith("tied") else model.output).bands
    head = torch.cat([hidden @ bands[0].weight.T, hidden @ model.output.choice.weight.T], 1)
    head = head.exp() / head.exp().sum(1, keepdim=True)
    parts = [head[:, :7]]
    for number, band in enumerate(list(bands)[1:]):
        narrow = band.projection
        if kind == "tied tables":
            narrow = model.output.narrow[number].weight.T
        scores = (hidden @ narrow @ band.weight.T).exp()
        within = scores / scores.sum(1, keepdim=True)
        parts.append(head[:, 7 + number, None] * within)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_definition(kind: str) -> None:
    model, batch = make(kind).double(), make_batch()
    hidden = torch.randn(len(batch.real_labels), WIDTH, dtype=torch.float64, requires_grad=True)
    probs = by_definition(model, kind, hidden)
    torch.testing.assert_close(probs.sum(1), torch.ones_like(probs[:, 0]))
    log_probs = model.output(hidden, model.target_embedding)
    torch.testing.assert_close(log_probs, probs.log())
    own = probs.log().gather(1, batch.real_labels[:, None]).squeeze(1)
    weights = {name: weight for name, weight in model.named_parameters() if "decoder" not in name}
    tensors = [hidden, *weights.values()]
    factors = torch.randn_like(own)
    expected = torch.autograd.grad((own * factors).sum(), tensors, materialize_grads=True)
    of_labels = model.output(hidden, model.target_embedding, batch.real_labels)
    torch.testing.assert_close(of_labels, own)
    found = torch.autograd.grad((of_labels * factors).sum(), tensors, materialize_grads=True)
    torch.testing.assert_close(found, expected)
    assert all(bool((each == 0).all()) for each in found if each.shape == (3, 2)), "no such label"
    if kind != "softmax alone":
        tokens = torch.tensor([[22, 3, 8], [20, 5, 0]])
        found_rows = model.target_embedding(tokens)
        torch.testing.assert_close(found_rows, embedded(model, tokens))


def test_training_computes_the_loss_of_full_log_probabilities() -> None:
    section = ModelAndBaseConfig(base=CrossEntropyConfig(label_smoothing=0.0))
    moe = {"num_experts": 2, "every": 1, "capacity_factor": None}
    model, batch = make("tied", moe=moe), make_batch()
    criterion = build_criterion(section, None, scores_labels=True)
    read = criterion.prepare(batch, Current(model, 0))
    output = model(read.inputs)
    assert output.logits.shape == (11, 0) and output.label_log_probs.dtype == torch.float32
    loss = criterion(output, read)
    full = CrossEntropy(0.0, "torch")(model(batch.inputs), batch)
    assert loss.of_tokens.item() == pytest.approx(full.total.item(), rel=1e-5)
    assert loss.parts["nll"] == pytest.approx(float(full.parts["nll"]), rel=1e-5)
    assert set(full.parts) < set(loss.parts), "and those of routers"
    half = make("tied").bfloat16().eval()
    assert half(batch.inputs).logits.dtype == torch.float32


def test_sizes() -> None:
    """Parameters of Baevski and Auli's model of WikiText-103: 247M."""
    section = DecoderOnlyConfig.model_validate({"name": "decoder_only", "preset": "lm_wiki103"})
    assert 246e6 < section.num_params(267_744).total < 248e6
    gbw = DecoderOnlyConfig.model_validate({"name": "decoder_only", "preset": "lm_gbw"})
    assert gbw.ffn_dim == 4096 and not gbw.has_final_norm
    plain = section.model_copy(update={"adaptive": None})
    ours, full = (forward_flops(each, 267_744) for each in (section, plain))
    assert ours is not None and full is not None and ours.per_target < 0.7 * full.per_target


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adaptive": {"cutoffs": [9, 9]}}, r"adaptive.cutoffs: \[9, 9\] must ascend"),
        ({"adaptive": {"cutoffs": [2, 4, 6]}}, "adaptive.factor: 4: the last of 4 bands would"),
        ({"adaptive": BANDS, "embedding_dim": 8}, "embedding_dim: cannot go with adaptive"),
        ({"adaptive": BANDS, "output_bias": True}, "output_bias: cannot go with adaptive"),
        ({"adaptive": {**BANDS, "input": False}}, "adaptive.input: false, but share_embeddings"),
        (
            {"adaptive": {**BANDS, "tie_projections": True}, "share_embeddings": "none"},
            "adaptive.tie_projections: true, but share_embeddings is none",
        ),
        ({"final_norm": False}, "final_norm: false applies to norm_position pre and subln"),
    ],
)
def test_refused_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**options)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ({}, "criterion.label_smoothing: 0.1 needs the scores of all tokens"),
        ({"label_smoothing": 0.0, "r_drop": 1.0}, "criterion.r_drop: 1.0 needs"),
        ({"name": "minimum_risk"}, "criterion.name: minimum_risk needs"),
        (
            {"name": "model_and_base", "base": {"name": "distillation", "teacher": "t"}},
            "criterion.base.name: distillation needs",
        ),
    ],
)
def test_losses_of_all_scores_are_refused(criterion: dict[str, Any], message: str) -> None:
    section = {
        "name": "x",
        "data": {"language": "en", "dir": "d", "vocab": {"size": 23}},
        "task": {"name": "language_modeling"},
        "model": {"name": "decoder_only", "adaptive": {"cutoffs": [7, 23]}},
        "criterion": criterion,
    }
    with pytest.raises(ValidationError) as caught:
        ExperimentConfig.model_validate(section)
    assert message in str(caught.value)
    assert "model.adaptive.cutoffs: 23 is not below data.vocab.size 23" in str(caught.value)


def test_a_vocabulary_that_is_too_small_is_an_error() -> None:
    with pytest.raises(UserError, match=r"model.adaptive.cutoffs: 20 is not below .* 20; use"):
        build_model(config(**KINDS["tied"]), 20, 1, 0, seed=1)
