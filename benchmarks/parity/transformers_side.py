"""transformers_axes.py: models of transformers, run by the interpreter of their own environment.

    python transformers_side.py OUT.safetensors

Writes, for each case, weights, inputs, outputs and the gradients of the weights for the loss
`sum(outputs * factors)`, as `CASE/KIND/NAME`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.peer_tensors import drawn, save_cases, sequences

VOCAB = 40
_BART_SIZES = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "pad_token_id": 1,
}
_LLAMA_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}


def _seq2seq(model: nn.Module) -> dict[str, Tensor]:
    values = sequences(VOCAB)
    logits = model(
        input_ids=values["source"],
        attention_mask=values["source_mask"].long(),
        decoder_input_ids=values["target"],
        use_cache=False,
    ).logits
    return {**values, "output": logits[values["target_mask"]]}


def _decoder(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 50, model.config.hidden_size, generator=generator).double()
    output = model(inputs_embeds=x, use_cache=False).last_hidden_state
    return {"x": x, "output": output}


def _t5(**options: Any) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=40,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=4,
        relative_attention_max_distance=20,
        relative_attention_num_buckets=8,
        dropout_rate=0.0,
        tie_word_embeddings=True,
        pad_token_id=1,
        **options,
    )
    config.scale_decoder_outputs = False  # of T5 1.0, which has no counterpart here
    return drawn(transformers.T5ForConditionalGeneration(config))


def _bart(**options: Any) -> nn.Module:
    config = transformers.BartConfig(**_BART_SIZES, **options)
    return drawn(transformers.BartForConditionalGeneration(config))


def _marian() -> nn.Module:
    config = transformers.MarianConfig(
        **_BART_SIZES, activation_function="swish", scale_embedding=True, decoder_start_token_id=2
    )
    model: Any = drawn(transformers.MarianMTModel(config))
    for stack in (model.model.encoder, model.model.decoder):  # frozen, but drawn all the same
        stack.embed_positions.weight.copy_(stack.embed_positions.create_weight())
    return model


def _m2m100() -> nn.Module:
    config = transformers.M2M100Config(
        **_BART_SIZES, activation_function="relu", scale_embedding=True
    )
    return drawn(transformers.M2M100ForConditionalGeneration(config))


def _llama(**options: Any) -> nn.Module:
    config = transformers.LlamaConfig(**_LLAMA_SIZES, num_key_value_heads=2, **options)
    return drawn(transformers.LlamaModel(config))


def _qwen3() -> nn.Module:
    config = transformers.Qwen3Config(
        **_LLAMA_SIZES,
        num_key_value_heads=1,
        head_dim=8,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=0,
        attn_implementation="eager",
    )
    return drawn(transformers.Qwen3Model(config))


def _rope(**options: Any) -> dict[str, Any]:
    """Spell the options of RoPE as this version of transformers does."""
    if int(transformers.__version__.split(".")[0]) >= 5:
        return {"rope_parameters": {"rope_theta": 10000.0, **options}}
    return {"rope_scaling": options if options["rope_type"] != "default" else None}


Run = Callable[[nn.Module], dict[str, Tensor]]
CASES: dict[str, tuple[Callable[[], nn.Module], Run]] = {
    "t5 v1.0 (relu)": (lambda: _t5(feed_forward_proj="relu"), _seq2seq),
    "t5 v1.1 (gated gelu)": (lambda: _t5(feed_forward_proj="gated-gelu"), _seq2seq),
    "bart": (_bart, _seq2seq),
    "bart, scaled, silu": (
        lambda: _bart(scale_embedding=True, activation_function="silu"),
        _seq2seq,
    ),
    "marian": (_marian, _seq2seq),
    "m2m100": (_m2m100, _seq2seq),
    "llama": (lambda: _llama(**_rope(rope_type="default")), _decoder),
    "llama, linear": (lambda: _llama(**_rope(rope_type="linear", factor=4.0)), _decoder),
    "llama, yarn": (
        lambda: _llama(**_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)),
        _decoder,
    ),
    "qwen3, window of 5": (_qwen3, _decoder),
}


def main(out: str) -> None:
    """Run all cases."""
    found = {}
    for case, (make, run) in CASES.items():
        model = make()
        found[case] = (model, run(model))
    save_cases(found, out)
    print(json.dumps({"transformers": transformers.__version__}))


if __name__ == "__main__":
    main(sys.argv[1])
