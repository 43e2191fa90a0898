"""Tensors that a forward pass keeps, computed from the config, are those that it does keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from ds_seq.config.cost.batch import LOSS_BLOCK, BatchShape, device
from ds_seq.config.cost.kinds import is_costed, kept_by
from ds_seq.config.model import ModelConfig
from ds_seq.criterions.cross_entropy import rows_at_a_time
from ds_seq.data.batch import Batch
from ds_seq.models import build_model
from tests.batches import batch_of, mark_every_third, text_batch_of
from tests.tensor_memory import TensorMemory

VOCAB, BATCH = 300, BatchShape(8, 32)
SIZES = {"d_model": 64, "ffn_dim": 256, "num_heads": 4, "encoder_layers": 2, "decoder_layers": 2}
EXPERTS = {"num_experts": 4, "top_k": 2, "capacity_factor": None}
DILATED = {"name": "dilated", "segment_lengths": [8, 32], "dilations": [1, 4]}
FEED_FORWARDS: tuple[dict[str, Any], ...] = (
    {"activation": "relu_squared"},
    {"activation": "gelu"},
    {"activation": "swiglu", "ffn_two_thirds": True},
    {"activation": "relu", "activation_dropout": 0.1},
    {"activation": "gelu", "activation_dropout": 0.1},
    {"activation": "geglu", "activation_dropout": 0.1},
    {"linear": "bitnet"},
)
CASES: tuple[dict[str, Any], ...] = (
    {},
    {"norm_position": "pre", "norm": "rms"},
    {"norm_position": "subln", "dropout": 0.0},
    {"norm_position": "deepnorm", "drop_path": 0.1, "layer_drop": 0.1},
    *FEED_FORWARDS,
    {"num_kv_heads": 2},
    {"query_key_norm": True},
    {"positions": "rotary"},
    {"positions": {"name": "rotary", "interleaved": True}},
    {"positions": "xpos", "num_kv_heads": 1},
    {"positions": "alibi"},
    {"positions": "buckets"},
    {"positions": "learned", "embedding_norm": True},
    {"attention_window": 5},
    {"attention_dropout": 0.1},
    {"head_dim": 24, "num_kv_heads": 2, "linear_bias": False},
    {"decoder_mixer": "retention", "attention_dropout": 0.1, "linear": "bitnet"},
    {
        "encoder_mixer": {"name": "retention", "chunk_size": 8},
        "decoder_mixer": {"name": "retention", "chunk_size": 8, "value_width": 96, "num_heads": 2},
        "positions": "none",
    },
    {"encoder_mixer": DILATED, "decoder_mixer": DILATED, "attention_dropout": 0.1},
    {"decoder_mixer": DILATED, "positions": "rotary", "num_kv_heads": 2},
    {
        "encoder_mixer": {"name": "lightweight_convolution", "weight_dropout": 0.1},
        "decoder_mixer": {"name": "dynamic_convolution", "input_dropout": 0.1, "width": 128},
        "linear": "bitnet",
    },
    {"adapters": {"ids": ["a", "b"], "active": "b"}},
    {"adapters": {"ids": ["a"], "active": "a", "gate": True, "norm": "last"}, "activation": "gelu"},
    {"lora": {"rank": 32, "modules": ["query", "output", "up", "down"], "dropout": 0.1}},
    {"lora": {"rank": 32, "modules": ["key", "up", "experts"]}, "moe": EXPERTS},
    {"multiway": {"markers": {"a": 0, "b": 1}}, "head_dim": 24},
    {"multiway": {"markers": {"b": 1}, "placement": "decoder"}, "decoder_layers": 3},
    {"embedding_dim": 32},
    {"embedding_dim": 32, "share_embeddings": "none"},
    {"encoder_repeats": 3, "decoder_repeats": 2},
    {"activation_checkpointing": True},
    {"moe": EXPERTS},
    {"moe": {**EXPERTS, "shared_experts": 1, "top_k": 1}, "activation": "swiglu"},
    {"moe": {**EXPERTS, "residual": True, "ffn_dim": 128}, "activation_dropout": 0.1},
    {"moe": {**EXPERTS, "conditional_budget": 0.5, "noise": "jitter"}},
    {"moe": {**EXPERTS, "router": "sigmoid"}, "norm_position": "subln"},
)

LSTM = {
    "name": "recurrent",
    "share_embeddings": "none",
    **dict.fromkeys(("encoder_embedding_dim", "encoder_hidden_dim"), 48),
    **dict.fromkeys(("decoder_embedding_dim", "decoder_hidden_dim", "output_dim"), 64),
}
LSTM_LM = {
    "name": "recurrent_lm",
    "share_embeddings": "none",
    **dict.fromkeys(("decoder_embedding_dim", "decoder_hidden_dim", "output_dim"), 64),
}
GATED = {
    "name": "convolutional",
    "embedding_dim": 48,
    "output_dim": 32,
    "encoder_convolutions": [[32, 3], [48, 2]],
    "decoder_convolutions": [[32, 3], [32, 3]],
}
GATED_LM = {"name": "convolutional_lm", "embedding_dim": 48}
OTHERS: tuple[dict[str, Any], ...] = (
    LSTM,
    {**LSTM, "attention": False, "decoder_layers": 2, "encoder_layers": 2},
    {**LSTM, "input_feeding": False, "output_dim": 32, "decoder_layers": 3, "residual": True},
    {**LSTM, "bidirectional": False, "decoder_layers": 2, "dropout": 0.0},
    LSTM_LM,
    {**LSTM_LM, "decoder_layers": 3, "output_dim": 32, "dropout": 0.0},
    GATED,
    {**GATED, "dropout": 0.0, "weight_norm": False},
    {**GATED, "output_dim": 48, "share_embeddings": "all"},
    {**GATED_LM, "decoder_convolutions": [[64, 3], [32, 1, 0], [64, 3, 2]]},
)

MASKED_LM = {"name": "encoder_only", **{k: v for k, v in SIZES.items() if k != "decoder_layers"}}
MASKED_LMS: tuple[dict[str, Any], ...] = (
    MASKED_LM,
    {**MASKED_LM, "lm_head": "dense", "activation": "gelu", "output_bias": True},
    {**MASKED_LM, "lm_head": "dense"},
)


@pytest.mark.parametrize(
    "fields", [*({**SIZES, **each} for each in CASES), *OTHERS, *MASKED_LMS], ids=str
)
def test_what_a_forward_pass_keeps(fields: dict[str, Any]) -> None:
    config = TypeAdapter(ModelConfig).validate_python(fields)
    assert is_costed(config)
    model = build_model(config, VOCAB, 1, 0, seed=1).train()
    mark_every_third(model)
    shape = (BATCH.sentences, BATCH.length)
    batch: Batch = batch_of(*(torch.randint(4, VOCAB, shape) for _ in range(2)))
    if len(config.stacks) == 1:
        batch = text_batch_of(batch)
    with TensorMemory(model.parameters()) as found:
        model(batch.inputs)  # makes tables of positions
        before = found.live
        output = model(batch.inputs)
        live = found.live - before
    assert output.logits.requires_grad
    kept = kept_by(config, BATCH, VOCAB, device("cpu", "fp32"))
    checkpointed = config.activation_checkpointing
    layers = sum(each.entry if checkpointed else each.kept for each in kept.layers)
    assert layers + kept.rest + kept.logits == pytest.approx(live, rel=0.04)


def test_the_loss_takes_as_many_logits_at_a_time_as_are_counted() -> None:
    assert rows_at_a_time(torch.empty(0, 1)) == LOSS_BLOCK * torch.get_num_threads()
