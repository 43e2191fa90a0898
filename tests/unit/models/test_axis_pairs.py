"""Every pair of values of different axes trains and translates, or is refused with a reason."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ds_seq.models.seq2seq import Seq2SeqTransformer
from tests.batches import encode, score

VOCAB = 23
MOE = {"num_experts": 2, "every": 1, "capacity_factor": None}
_MAPS = ("query", "key", "value", "output", "up", "down")
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
    | {"yarn": {"positions": {"name": "rotary", "scaling": "yarn", "factor": 2.0}}}
    | {"ntk": {"positions": {"name": "rotary", "scaling": "ntk", "factor": 2.0}}},
    "heads": {"shared": {"num_kv_heads": 2}, "one": {"num_kv_heads": 1}},
    "encoder mixer": {
        "retention before": {"encoder_mixer": {"name": "retention", "chunk_size": 3}}
    },
    "decoder mixer": {"retention": {"decoder_mixer": "retention"}},
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
    "pruned": {"pruned": {"pruned_heads": {"encoder": [[0], [1, 2]], "cross": [[], [3]]}}},
    "dropping": {"dropping": {"layer_drop": 0.3, "drop_path": 0.3}},
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
    "repeats": {"repeats": {"encoder_repeats": 2, "decoder_repeats": 3}},
    "recomputed": {"recomputed": {"activation_checkpointing": True}},
}
for _values in AXES["positions"].values():
    if isinstance(_values["positions"], dict) and _values["positions"].get("scaling") == "yarn":
        _values["positions"]["original_length"] = 16

Named = tuple[str, dict[str, Any]]
VALUES: list[tuple[str, Named]] = [
    (axis, (name, fields)) for axis, values in AXES.items() for name, fields in values.items()
]
PAIRS = [(one, other) for (a, one), (b, other) in combinations(VALUES, 2) if a != b]
SAMPLE = PAIRS[::7]


def _settings(*values: Named) -> dict[str, Any]:
    settings: dict[str, Any] = {"num_heads": 4, "dropout": 0.1}
    for _, fields in values:
        settings |= fields
    return settings


def _trains_and_translates(model: Seq2SeqTransformer, pairs: Any, updates: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(updates):
        output = score(model.train(), *pairs)
        loss = output.logits.square().mean() + sum(output.router_losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    moved = sum(
        not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)
    )
    assert moved > 0.5 * len(before), "an expert without tokens stays, all else is trained"
    model.eval()
    tokens = torch.randint(4, VOCAB, (len(pairs.src), 2, 5))
    with torch.inference_mode():
        cache = model.start_cache(encode(model, pairs.src), 2, max_length=5)
        for step in range(5):
            logits = model.decode_step(tokens[..., step].flatten(), cache)
        full = score(model, pairs.src.repeat_interleave(2, 0), tokens.flatten(0, 1)).logits[:, -1]
    torch.testing.assert_close(logits, full, atol=1e-5, rtol=1e-5)


def _check(build: Any, config: Any, pairs: Any, values: tuple[Named, ...]) -> None:
    settings = _settings(*values)
    try:
        cfg = config(**settings)
    except ValidationError as error:
        assert all(each["msg"] for each in error.errors())
        return
    model = build(**settings)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert cfg.num_params(VOCAB).total == counted
    # A stack may skip all its layers in an update, and then no layer below it is trained.
    _trains_and_translates(model, pairs, updates=10 if cfg.layer_drop else 2)


def _names(values: tuple[Named, ...]) -> str:
    return "-".join(name for name, _ in values)


@pytest.mark.parametrize("values", SAMPLE, ids=_names)
def test_a_sample_of_all_pairs(build, config, pairs, values):
    _check(build, config, pairs, values)


def test_the_sample_has_every_value():
    met = {name for pair in SAMPLE for name, _ in pair}
    assert met == {name for _, (name, _) in VALUES}


@pytest.mark.slow
@pytest.mark.parametrize("values", PAIRS, ids=_names)
def test_every_pair(build, config, pairs, values):
    _check(build, config, pairs, values)
