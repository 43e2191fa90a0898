"""gpu.py: whether every kind of layer gives finite gradients for every kind of batch."""

from __future__ import annotations

from typing import Any

import torch

from ds_seq.config.model import MoeConfig, TransformerConfig
from ds_seq.data.batch import Batch, Seq2SeqInputs, empty_seq2seq_batch, seq2seq_batch
from ds_seq.data.source import TokenBlock
from ds_seq.models.build import build_seq2seq

from .bench import DTYPES, Bench, Sizes
from .text import SYMBOLS, make_batches
from .training import criterion

_VOCAB = 512
_DROPLESS = MoeConfig(num_experts=4, every=1, capacity_factor=None)
_MODELS: dict[str, dict[str, Any]] = {
    "dense": {},
    "moe": {"moe": _DROPLESS},
    "moe, ffn_dim 100": {"moe": _DROPLESS, "ffn_dim": 100},
    "moe, capacity": {"moe": MoeConfig(num_experts=4, every=1)},
    "moe, top 2, random second": {
        "moe": MoeConfig(num_experts=4, every=1, top_k=2, second_expert="random")
    },
    "expert choice": {
        "moe": MoeConfig(num_experts=4, router="expert_choice", placement="encoder", every=1)
    },
    "sigmoid, shared": {
        "moe": MoeConfig(num_experts=4, every=1, router="sigmoid", top_k=3, shared_experts=1)
    },
    "swiglu, rotary, dropouts": {
        "activation": "swiglu",
        "positions": "rotary",
        "attention_dropout": 0.1,
        "activation_dropout": 0.1,
        "moe": _DROPLESS,
    },
    "checkpointing": {"activation_checkpointing": True, "moe": _DROPLESS},
}


def corners(bench: Bench) -> None:
    """Run every model in every precision on every batch; list failures separately."""
    batches, outcomes = _batches(bench.device), {}
    for name, changes in _MODELS.items():
        for precision, dtype in DTYPES.items():
            fields: dict[str, Any] = {
                "d_model": 64,
                "ffn_dim": 128,
                "num_heads": 4,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "dropout": 0.1,
                **changes,
            }
            model = build_seq2seq(TransformerConfig(**fields), _VOCAB, 1, 0, seed=1).to(
                bench.device, dtype
            )
            for kind, batch in batches.items():
                outcomes[f"{name} {precision} {kind}"] = _try(model.train(), batch)
                bench.figures.update(outcomes)
    failures = {case: outcome for case, outcome in outcomes.items() if outcome != "ok"}
    bench.figures["failures"] = failures


def _batches(device: torch.device) -> dict[str, Batch[Seq2SeqInputs]]:
    end = TokenBlock.of([[SYMBOLS.eos]])
    return {
        "usual": make_batches(Sizes.choose(tiny=True), 128, 1, device)[0].batch,
        "empty": empty_seq2seq_batch(SYMBOLS).to(device),
        "one token": seq2seq_batch(end, end, SYMBOLS).to(device),
    }


def _try(model: torch.nn.Module, batch: Batch[Seq2SeqInputs]) -> str:
    """Return `ok`, or a description of the failure."""
    model.zero_grad(set_to_none=True)
    try:
        criterion()(model(batch.inputs), batch).total.backward()
    except Exception as problem:
        return f"{type(problem).__name__}: {str(problem)[:160]}"
    bad = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
    ]
    return f"not finite: {bad[:4]}" if bad else "ok"
