"""The arithmetic of a model, computed from its config, is what torch counts while it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ds_seq.config.flops import forward_flops, training_flops
from ds_seq.config.model import TransformerConfig
from ds_seq.config.model.section import LengthSums
from ds_seq.models import build_model
from tests.batches import batch_of

SMALL = {"d_model": 32, "num_heads": 4, "ffn_dim": 64, "encoder_layers": 2, "decoder_layers": 3}
VOCAB, ROWS, SOURCE, TARGET = 50, 2, 16, 32
# all experts see all tokens, so that no expert computes rows of its neighbors, too
ALL = {"num_experts": 2, "top_k": 2, "capacity_factor": None}
CASES: tuple[dict[str, Any], ...] = (
    {},
    {"activation": "swiglu", "ffn_two_thirds": True},
    {"num_kv_heads": 1, "query_key_norm": True, "positions": "rotary"},
    {"embedding_dim": 8},
    {"embedding_dim": 8, "share_embeddings": "none"},
    {"share_embeddings": "decoder", "norm_position": "subln"},
    {"encoder_repeats": 3, "decoder_repeats": 2},
    {"attention_window": 5, "positions": "alibi"},
    {"head_dim": 12, "num_kv_heads": 2},
    {"pruned_heads": {"encoder": [[0], [1, 2]], "cross": [[], [3], [0]]}, "decoder_repeats": 2},
    {"adapters": {"ids": ["a", "b"], "active": "a", "gate": True}},
    {"lora": {"rank": 2}, "num_kv_heads": 2},
    {"lora": {"modules": ["key", "output", "up", "down"]}, "activation": "swiglu", "head_dim": 12},
    {"lora": {"modules": ["up", "down"]}, "moe": {**ALL, "shared_experts": 1}},
    {"decoder_mixer": {"name": "retention", "value_width": 48, "num_heads": 2}, "num_kv_heads": 2},
    {
        "encoder_mixer": {"name": "retention", "chunk_size": 4},
        "decoder_mixer": {"name": "retention", "chunk_size": 8},
        "positions": "none",
        "decoder_repeats": 2,
        "lora": {"modules": ["query", "value", "output"]},
    },
    {"moe": ALL},
    {"moe": {**ALL, "shared_experts": 2, "ffn_dim": 24, "every": 1}, "encoder_repeats": 2},
    {"moe": {**ALL, "residual": True}, "activation": "geglu"},
    {"moe": {**ALL, "conditional_budget": 0.5, "router": "sigmoid"}},
    {"moe": {**ALL, "router": "cosine"}},
)


def _counted(config: TransformerConfig) -> tuple[int, int]:
    """Return the operations that torch counts forward and backward."""
    model = build_model(config, VOCAB, 1, 0, seed=1).double()
    source, target = (torch.randint(4, VOCAB, (ROWS, length)) for length in (SOURCE, TARGET))
    # of the fused kernels, torch counts those of GPUs only
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        output = model(batch_of(source, target).inputs)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as backward:
        (output.logits.sum() + sum(output.router_losses.values())).backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_operations_are_those_that_torch_counts(fields: dict[str, Any]) -> None:
    config = TransformerConfig(**{**SMALL, **fields})
    forward, backward = _counted(config)
    sums = (SOURCE, TARGET, SOURCE**2, TARGET**2, SOURCE * TARGET)
    lengths = LengthSums(*(ROWS * each for each in sums))
    expected, training = forward_flops(config, VOCAB), training_flops(config, VOCAB)
    assert expected is not None and training is not None
    assert expected.of(lengths) == forward
    assert training.of(lengths) == forward + backward


def test_of_dilated_attention_the_keys_of_its_segments_count() -> None:
    """Torch also counts the scores that the backward pass computes again, as fused kernels do."""
    segments = {"name": "dilated", "segment_lengths": [8, 32], "dilations": [1, 2]}
    fields = {"decoder_mixer": segments, "max_positions": 32}
    config = TransformerConfig(**{**SMALL, **fields})
    forward, backward = _counted(config)
    again = 2 * ROWS * 3 * 32 * ((TARGET // 8) * 8**2 + (TARGET // 2) ** 2)  # 3 layers
    sums = (SOURCE, TARGET, SOURCE**2, TARGET**2, SOURCE * TARGET)
    lengths = LengthSums(*(ROWS * each for each in sums))
    expected, training = forward_flops(config, VOCAB), training_flops(config, VOCAB)
    assert expected is not None and training is not None
    assert expected.of(lengths) == forward
    assert training.of(lengths) == forward + backward - again


def test_of_a_convolution_the_tokens_under_a_kernel_count() -> None:
    """Torch also counts the zeros of the bands: for each token, those of a block but one."""
    fields = {
        "encoder_mixer": {"name": "lightweight_convolution", "kernel_sizes": [3, 4]},
        "decoder_mixer": {"name": "dynamic_convolution", "width": 16, "glu": False},
        "decoder_repeats": 2,
        "lora": {"modules": ["query", "value", "output"]},
    }
    config = TransformerConfig(**{**SMALL, **fields})
    forward, _ = _counted(config)
    zeros = 2 * ROWS * SOURCE * (SOURCE - 1) * 2 * 32  # 2 layers, 32 channels, a block of 16
    zeros += 2 * ROWS * TARGET * (TARGET - 1) * 6 * 16  # 6 calls, 16 channels, a block of 32
    sums = (SOURCE, TARGET, SOURCE**2, TARGET**2, SOURCE * TARGET)
    expected = forward_flops(config, VOCAB)
    assert expected is not None
    assert expected.of(LengthSums(*(ROWS * each for each in sums))) == forward - zeros
