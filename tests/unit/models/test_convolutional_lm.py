"""The language model of gated convolutions: parameters, causality, padding, decoding, residuals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ds_seq.config.flops import forward_flops
from ds_seq.config.model import ConvolutionalLmConfig, RecurrentLmConfig
from ds_seq.data.batch import Batch
from ds_seq.data.source import TokenBlock
from ds_seq.data.text_batch import TextInputs, text_batch
from ds_seq.models import build_model
from ds_seq.models.packing import pack_weights
from tests.unit.models.test_recurrent import gradient_order
from tests.unit.models.text_models import EXACT, SYMBOLS, check_beam, check_steps, inputs_of

VOCAB = 23
BANDS = {"cutoffs": [7, 15], "factor": 2, "input": False}
CASES: dict[str, dict[str, Any]] = {
    "one width": {"decoder_convolutions": [[8, 3]] * 2},
    "shared": {"share_embeddings": "all"},
    "bottleneck": {"decoder_convolutions": [[8, 3], [4, 1, 0], [4, 3, 0], [10, 1, 3], [8, 2, 4]]},
    "adaptive": {"adaptive": BANDS},
    "plain maps": {"weight_norm": False},
}
TEXTS = [[5, 6, 7, 8, 2], [9, 10, 2], [11, 2]]


def config(**options: Any) -> ConvolutionalLmConfig:
    small = {"embedding_dim": 8, "decoder_convolutions": [[6, 3], [8, 2]], "dropout": 0.0}
    return ConvolutionalLmConfig.model_validate({"name": "convolutional_lm", **small, **options})


def made(**options: Any) -> nn.Module:
    """Build a model in which no part that is not applied stays hidden, as at zero."""
    model = build_model(config(**options), VOCAB, 1, 0, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def batch_of(texts: list[list[int]]) -> Batch[TextInputs]:
    return text_batch(TokenBlock.of(texts), SYMBOLS)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@torch.no_grad()
def test_padding_mates_later_tokens_and_steps_change_nothing(options: dict[str, Any]) -> None:
    model = made(**options).eval()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert config(**options).num_params(VOCAB).total == total
    logits = check_steps(model, TEXTS, 20, 1e-3)
    pack_weights(model)
    torch.testing.assert_close(model(inputs_of(TEXTS)).logits, logits, **EXACT)


@torch.no_grad()
def test_what_is_under_the_kernels_follows_the_beam() -> None:
    model = made(**CASES["bottleneck"]).eval()
    check_beam(model, TEXTS, VOCAB)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_gradients_come_in_one_order_whatever_the_batch(options: dict[str, Any]) -> None:
    # ZeRO stage 2 adds up what comes at the same place on each rank
    batches = [inputs_of(texts) for texts in (TEXTS, TEXTS[:1], [[2]], [[5] * 30, [2]])]
    model = made(**options)
    assert len(gradient_order(model, batches)) == 1
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "section",
    [
        config(**CASES["adaptive"]),
        RecurrentLmConfig.model_validate(
            {
                "name": "recurrent_lm",
                **{f"decoder_{key}_dim": 12 for key in ("embedding", "hidden")},
                "adaptive": BANDS,
                "share_embeddings": "none",
                "dropout": 0.0,
            }
        ),
    ],
    ids=lambda section: section.name,
)
def test_adaptive_softmax_scores_labels_as_it_scores_all_tokens(section: Any) -> None:
    model = build_model(section, VOCAB, 1, 0, seed=1)
    assert section.num_params(VOCAB).total == sum(each.numel() for each in model.parameters())
    batch = batch_of(TEXTS)
    full = model(batch.inputs)
    labels = batch.labels[batch.mask]
    torch.testing.assert_close(full.logits.exp().sum(-1), torch.ones(len(labels)))
    alone = model(batch.inputs._replace(labels=labels))
    assert alone.label_log_probs is not None and alone.logits.shape == (len(labels), 0)
    expected = full.logits.gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(alone.label_log_probs, expected, **EXACT)
    cache = model.start_cache(model.encode(*batch.inputs[:2]), 1, 8)
    step = model.decode_step(batch.inputs.tokens[:, 0], cache)
    torch.testing.assert_close(step, full.logits[[0, 5, 8]], **EXACT)


def test_operations_are_those_that_torch_counts() -> None:
    cfg, tokens = config(**CASES["bottleneck"]), [[5, 6, 7, 8, 2]] * 2
    with FlopCounterMode(display=False) as counter:
        made(**CASES["bottleneck"])(inputs_of(tokens))
    expected = forward_flops(cfg, VOCAB)
    assert expected is not None and expected.per_target * 10 == counter.get_total_flops()


# numbers of parameters of fairseq 0.12.3.1 for vocabularies of 300,000, with --criterion
# adaptive_loss where the architecture has bands
FAIRSEQ = {
    "fconv_lm": 245_007_032,
    "fconv_lm_dauphin_wikitext103": 239_369_300,
    "fconv_lm_dauphin_gbw": 333_635_584,
}


@pytest.mark.parametrize("preset", FAIRSEQ)
def test_presets_have_the_parameters_of_fairseq(preset: str) -> None:
    cfg = ConvolutionalLmConfig(name="convolutional_lm", preset=preset)
    assert cfg.num_params(300_000).total == FAIRSEQ[preset]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_convolutions": [[8, 3], [8, 3, 3]]}, "there are only 2 inputs up to it"),
        ({"decoder_convolutions": [[0, 3]]}, "channels and kernel have at least 1"),
        ({"adaptive": {"cutoffs": [9]}}, "adaptive.input: true, but the input of a model convolut"),
        ({"adaptive": BANDS, "share_embeddings": "all"}, "adaptive.input: false, but share_embed"),
        ({"preset": "fconv_lm_dauphin_gwb"}, "did you mean 'fconv_lm_dauphin_gbw'"),
        ({"encoder_convolutions": [[8, 3]]}, "encoder_convolutions"),
        ({"positions": "learned"}, "positions"),
    ],
)
def test_mistakes_name_the_field(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**options)
