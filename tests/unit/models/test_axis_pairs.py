"""Every pair of values of different axes trains and translates, or is refused with a reason.

A model has many values at once, so that few models have all pairs. Where one fails, `-m slow` tells
which pair it is: it makes a model for each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ds_seq.models.output import ModelOutput
from ds_seq.models.seq2seq import Seq2SeqTransformer
from tests.batches import encode, score
from tests.covering import all_pairs, covering_rows

VOCAB = 23
MOE = {"num_experts": 2, "every": 1, "capacity_factor": None}
_MAPS = ("query", "key", "value", "output", "up", "down")
_LONGER = {"name": "rotary", "factor": 2.0}
DILATED = {"name": "dilated", "segment_lengths": [2, 5], "dilations": [1, 2]}
AXES: dict[str, dict[str, dict[str, Any]]] = {
    "norm": {"rms": {"norm": "rms"}},
    "norm_position": {
        name: {"norm_position": name} for name in ("pre", "post", "deepnorm", "subln")
    },
    "activation": {
        name: {"activation": name}
        for name in ("relu_squared", "gelu_tanh", "silu", "glu", "reglu", "geglu_tanh")
    }
    | {"two thirds": {"activation": "swiglu", "ffn_two_thirds": True}},
    "positions": {
        name: {"positions": name}
        for name in ("sinusoidal", "learned", "none", "rotary", "xpos", "alibi", "buckets")
    }
    | {"offset": {"positions": {"name": "sinusoidal", "offset": 2, "wavelengths": "exclusive"}}}
    | {"yarn": {"positions": {**_LONGER, "scaling": "yarn", "original_length": 16}}}
    | {"ntk": {"positions": {**_LONGER, "scaling": "ntk"}}},
    "heads": {"shared": {"num_kv_heads": 2}, "one": {"num_kv_heads": 1}},
    "mixer": {  # two mixers other than attention are in `test_axes.py`
        "retention before": {"encoder_mixer": {"name": "retention", "chunk_size": 3}},
        "retention": {"decoder_mixer": "retention"},
        "convolution before": {"encoder_mixer": {"name": "dynamic_convolution", "width": 8}},
        "convolution": {"decoder_mixer": {"name": "lightweight_convolution", "glu": False}},
        "dilated before": {"encoder_mixer": DILATED},
        "dilated": {"encoder_mixer": DILATED, "decoder_mixer": DILATED},
    },
    "head width": {"head width": {"head_dim": 6}},
    "bias": {"no biases": {"linear_bias": False}},
    "output bias": {"output bias": {"output_bias": True}},
    "window": {"window": {"attention_window": 2}},
    "query norms": {"query norms": {"query_key_norm": True}},
    "embedding": {
        "factor": {"embedding_dim": 8},
        "apart": {"embedding_dim": 8, "share_embeddings": "none"},
        "inputs": {"share_embeddings": "inputs"},
        "norm": {"embedding_norm": True, "embedding_scale": False},
    },
    "linear": {
        "ternary": {"linear": "bitnet"},
        "binary": {"linear": {"name": "bitnet", "weights": "binary", "activation_bits": None}},
    },
    "multiway": {
        "multiway": {"multiway": {"markers": {"a": 0, "b": 1}}},
        "multiway encoder": {"multiway": {"markers": {"b": 1}, "placement": "encoder"}},
    },
    "pruned": {"pruned": {"pruned_heads": {"encoder": [[1, 2]], "cross": [[], [3]]}}},
    "dropping": {"dropping": {"layer_drop": 0.1, "drop_path": 0.3}},
    "experts": {
        "experts": {"moe": MOE},
        "shared experts": {"moe": {**MOE, "shared_experts": 1}},
        "cosine": {"moe": {**MOE, "router": "cosine", "top_k": 2}},
        "chosen": {"moe": {**MOE, "router": "expert_choice", "placement": "encoder"}},
    },
    "adapters": {
        "adapters": {"adapters": {"ids": ["a"], "active": "a", "gate": True}},
        "last": {"adapters": {"ids": ["a"], "active": "a", "norm": "last", "reduction": 2}},
    },
    "lora": {
        "lora": {"lora": {"rank": 2, "modules": [*_MAPS]}},
        "stable": {"lora": {"rank": 4, "rank_stabilized": True, "dropout": 0.1}},
    },
    "repeats": {"repeats": {"encoder_repeats": 3, "decoder_repeats": 2}},
    "recomputed": {"recomputed": {"activation_checkpointing": True}},
}
_OTHER_ENCODERS = ("retention before", "convolution before")
LORA = ("lora", "stable")
REFUSED = {
    "pruned": ("subln", "shared", "one", *_OTHER_ENCODERS, *LORA),
    "dilated before": ("alibi", "buckets"),
    "dilated": ("alibi", "buckets", "window"),
    **dict.fromkeys(("ternary", "binary", "multiway", "multiway encoder"), LORA),
}
"""Values that cannot go with others."""
APART = {frozenset(("retention", "convolution before"))} | {
    frozenset(("convolution", encoder)) for encoder in _OTHER_ENCODERS
}
"""Mixers of both stacks leave no self-attention to go with other values: see `test_axes.py`."""

FIELDS = dict(chain.from_iterable(values.items() for values in AXES.values()))
NAMES = {axis: list(values) for axis, values in AXES.items()}
PAIRS = all_pairs(NAMES)
REFUSED_PAIRS = {frozenset((one, other)) for one, others in REFUSED.items() for other in others}
ROWS = covering_rows(NAMES, REFUSED_PAIRS | APART)


def _settings(names: tuple[str, ...]) -> dict[str, Any]:
    settings: dict[str, Any] = {"num_heads": 4, "encoder_layers": 1, "dropout": 0.1}
    for name in names:
        settings |= FIELDS[name]
    return settings


def moved_by_training(model: nn.Module, forward: Callable[[], ModelOutput]) -> int:
    """Train for two updates; return how many parameters are not what they were."""
    torch.manual_seed(1)  # or both updates might drop the same layer
    optimizer = torch.optim.Adam(model.train().parameters(), lr=0.01)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(2):
        output = forward()
        loss = output.logits.square().mean() + sum(output.router_losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    return sum(
        not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)
    )


def _trains_and_translates(model: Seq2SeqTransformer, pairs: Any, dtype: torch.dtype) -> None:
    moved = moved_by_training(model, lambda: score(model, *pairs))
    count = len(list(model.parameters()))
    assert moved > 0.5 * count, "an expert without tokens stays, all else is trained"
    model.eval().to(dtype)
    tokens = torch.randint(4, VOCAB, (len(pairs.src), 2, 4))
    with torch.inference_mode():
        cache = model.start_cache(encode(model, pairs.src), 2, max_length=4)
        for step in range(4):
            logits = model.decode_step(tokens[..., step].flatten(), cache)
        full = score(model, pairs.src.repeat_interleave(2, 0), tokens.flatten(0, 1)).logits[:, -1]
    torch.testing.assert_close(logits, full, atol=1e-5, rtol=1e-5)


def _check(build: Any, config: Any, pairs: Any, names: tuple[str, ...]) -> None:
    settings = _settings(names)
    cfg, model = config(**settings), build(**settings)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert cfg.num_params(VOCAB).total == counted
    # In float32, an activation may be rounded to one or the other of two of its 8-bit levels.
    dtype = torch.float64 if "ternary" in names else torch.float32
    _trains_and_translates(model, pairs, dtype)


def _is_refused(config: Any, names: tuple[str, ...]) -> bool:
    try:
        config(**_settings(names))
    except ValidationError as error:
        assert all(each["msg"] for each in error.errors())
        return True
    return False


@pytest.mark.parametrize("names", ROWS, ids="-".join)
def test_rows_with_all_pairs_train_and_translate(build, config, pairs, names):
    _check(build, config, pairs, names)


def test_only_pairs_that_cannot_go_together_are_refused(config):
    assert {frozenset(pair) for pair in PAIRS if _is_refused(config, pair)} == REFUSED_PAIRS


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [pair for pair in PAIRS if frozenset(pair) not in REFUSED_PAIRS], ids="-".join
)
def test_a_pair_trains_and_translates(build, config, pairs, names):
    _check(build, config, pairs, names)
