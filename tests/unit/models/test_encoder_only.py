"""The encoder-only model: parameters, whole context, padding, refused settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ds_seq.config.flops import forward_flops
from ds_seq.config.model import EncoderOnlyConfig
from ds_seq.data.batch import Batch
from ds_seq.data.source import TokenBlock
from ds_seq.data.text_batch import MaskedInputs, empty_text_batch, masked_batch
from ds_seq.models import build_model
from ds_seq.text.tokenizer import Symbols

VOCAB, MASK = 23, 4
SYMBOLS = Symbols(pad=1, eos=2, unk=3, start=2)
SIZES = {"d_model": 16, "encoder_layers": 2, "num_heads": 2, "ffn_dim": 24, "dropout": 0.0}
AXES: list[dict[str, Any]] = [
    {},
    {"moe": {"every": 1, "num_experts": 2, "capacity_factor": None}, "norm": "rms"},
    {"moe": {"every": 1, "num_experts": 2, "router": "expert_choice", "placement": "encoder"}},
    {"encoder_mixer": "retention", "positions": "none", "norm_position": "pre"},
    {"encoder_mixer": {"name": "lightweight_convolution", "kernel_sizes": [3, 3]}},
    {"share_embeddings": "none", "embedding_dim": 8, "positions": "rotary", "num_kv_heads": 1},
    {"norm_position": "deepnorm", "activation": "swiglu", "positions": "alibi"},
    {"norm_position": "subln", "output_bias": True, "encoder_repeats": 2, "attention_window": 2},
    {"lm_head": "dense", "output_bias": True, "activation": "gelu", "embedding_norm": True},
    {"lm_head": "dense", "share_embeddings": "none", "embedding_dim": 8, "norm": "rms"},
    {"adapters": {"ids": ["a"], "active": "a"}, "lora": {"rank": 2}, "positions": "learned"},
]
TEXTS = [[5, 6, 7, 8, 2], [9, 10, 2], [11, 2]]


def config(**options: Any) -> EncoderOnlyConfig:
    return EncoderOnlyConfig.model_validate({"name": "encoder_only", **SIZES, **options})


def hidden(texts: list[list[int]], place: int = 0) -> Batch:
    """A batch in which one token of each text is hidden."""
    rows = [[MASK if n == place else token for n, token in enumerate(row)] for row in texts]
    scored = np.concatenate([np.arange(len(row)) == place for row in texts])
    numbers = torch.arange(len(texts))
    return masked_batch(TokenBlock.of(rows), TokenBlock.of(texts), scored, SYMBOLS, numbers)


def test_labels_are_the_hidden_tokens() -> None:
    batch = hidden(TEXTS, place=1)
    assert batch.real_labels.tolist() == [6, 10, 2] and batch.num_tokens == 3
    assert batch.inputs.tokens.tolist() == [[5, 4, 7, 8, 2], [9, 4, 2, 1, 1], [11, 4, 1, 1, 1]]
    assert batch.inputs.num_tokens == 10 and batch.inputs.token_mask.sum() == 10
    assert isinstance(batch.to("cpu").inputs, MaskedInputs)


@pytest.mark.parametrize("options", AXES, ids=lambda options: ",".join(options) or "plain")
def test_an_axis_counts_and_ignores_mates(options: dict[str, Any]) -> None:
    section = config(**options)
    model = build_model(section, VOCAB, 1, 0, seed=1).eval()
    size = section.num_params(VOCAB)
    assert size is not None
    assert size.total == sum(parameter.numel() for parameter in model.parameters())
    flops = forward_flops(section, VOCAB)
    assert flops is not None and flops.per_source > 0 and flops.per_target_pair == 0
    with torch.inference_mode():
        together = model(hidden(TEXTS).inputs).logits
        assert together.shape == (3, VOCAB)
        alone = torch.cat([model(hidden([text]).inputs).logits for text in TEXTS])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
        empty = model(empty_text_batch(SYMBOLS, MaskedInputs).inputs)
        assert empty.logits.shape == (0, VOCAB)
        if options.get("attention_window") is None and "lightweight" not in str(options):
            behind = model(hidden([[5, 6, 7, 20, 2]]).inputs).logits  # the fourth differs
            assert (behind - together[:1]).abs().max() > 1e-5


def test_a_dense_head_scores_by_the_table_after_map_activation_and_norm() -> None:
    """As RoBERTa's, whose projection is the table: both uses have one gradient."""
    section = config(lm_head="dense", output_bias=True, activation="gelu")
    model = build_model(section, VOCAB, 1, 0, seed=1)
    inputs = hidden(TEXTS).inputs
    states = model.encoded(*inputs[:2]).hidden[:, 0].detach()
    head, table = model.lm_head, model.target_embedding
    torch.nn.init.normal_(table.bias)
    inner = torch.nn.functional.gelu(states @ head.dense.weight.T + head.dense.bias)
    normed = torch.nn.functional.layer_norm(inner, (16,), head.norm.weight, head.norm.bias)
    torch.testing.assert_close(model(inputs).logits, normed @ table.weight.T + table.bias)
    plain = build_model(config(output_bias=True, activation="gelu"), VOCAB, 1, 0, seed=1)
    own = dict(model.named_parameters())
    assert all(torch.equal(own[n], p) for n, p in plain.named_parameters() if "bias" not in n)
    model(inputs).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    unread = 22  # no text has it: its row is only scored
    assert table.weight.grad[unread].abs().sum() > 0 and table.bias.grad.abs().min() > 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"decoder_layers": 2}, "decoder_layers"),
        ({"moe": {"every": 1, "router": "language"}}, "a model encoder_only has no source with"),
        ({"lm_head": "dense", "activation": "swiglu"}, "no gate for model.activation swiglu; use"),
        ({"lora": {"stacks": "decoder"}}, "decoder, which a model encoder_only does not have"),
    ],
)
def test_what_needs_a_decoder_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**options)
