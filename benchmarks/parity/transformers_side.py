"""transformers_axes.py: models of transformers, run by the interpreter of their own environment.

    python transformers_side.py OUT.safetensors

Writes, for each case, weights, inputs, outputs and the gradients of the weights for the loss
`sum(outputs * factors)`, as `CASE/KIND/NAME`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

SIZES = {"vocab_size": 40, "dropout": 0.0}
LENGTHS, TARGETS = (9, 4, 7), (6, 8, 1)


def _drawn(model: nn.Module) -> nn.Module:
    """Draw all weights anew, so that no part is hidden by zeros or ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            base = 1.0 if parameter.ndim == 1 else 0.0
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(base + 0.2 * drawn)
    return model.double().eval()


def _rows(lengths: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Return token ids (B, T), padded on the right with 1, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, SIZES["vocab_size"], (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, 1), mask


def _seq2seq(model: nn.Module) -> dict[str, Tensor]:
    (source, source_mask), (target, target_mask) = _rows(LENGTHS, 2), _rows(TARGETS, 3)
    logits = model(
        input_ids=source,
        attention_mask=source_mask.long(),
        decoder_input_ids=target,
        use_cache=False,
    ).logits[target_mask]
    return {
        "source": source,
        "source_mask": source_mask,
        "target": target,
        "target_mask": target_mask,
        "output": logits,
    }


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
    return transformers.T5ForConditionalGeneration(config)


def _bart(**options: Any) -> nn.Module:
    config = transformers.BartConfig(
        vocab_size=40,
        d_model=32,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        dropout=0.0,
        pad_token_id=1,
        **options,
    )
    return transformers.BartForConditionalGeneration(config)


def _llama(**options: Any) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        **options,
    )
    return transformers.LlamaModel(config)


def _qwen3() -> nn.Module:
    config = transformers.Qwen3Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=0,
        attn_implementation="eager",
    )
    return transformers.Qwen3Model(config)


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
    tensors: dict[str, Tensor] = {}
    for case, (make, run) in CASES.items():
        model = _drawn(make())
        found = run(model)
        generator = torch.Generator().manual_seed(5)
        found["factors"] = torch.randn(found["output"].shape, generator=generator).double()
        (found["output"] * found["factors"]).sum().backward()
        for name, value in found.items():
            tensors[f"{case}/values/{name}"] = value.detach().clone()
        for name, parameter in model.named_parameters():
            tensors[f"{case}/weights/{name}"] = parameter.detach().clone()
            if parameter.grad is not None:
                tensors[f"{case}/gradients/{name}"] = parameter.grad.clone()
    save_file({k: v.contiguous() for k, v in tensors.items()}, out)
    print(json.dumps({"transformers": transformers.__version__}))


if __name__ == "__main__":
    main(sys.argv[1])
