"""fairseq_parity.py: weights of one of our dense models for fairseq's `TransformerModel`.

Only names differ, and queries, keys and values are one matrix here but three in fairseq, which
counts positions from the padding id + 1 while we count from 0: learned rows are shifted, and the
fixed table of fairseq is built so that its first position gets our row 0.

Shapes: D model width.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from ds_seq.config.model import ModelConfig
from ds_seq.errors import UserError

FIRST_POSITION = 2  # fairseq's: the padding id + 1

_RENAMED = (
    (r"^target_embedding\.weight$", "decoder.embed_tokens.weight"),
    (r"^source_embedding\.weight$", "encoder.embed_tokens.weight"),
    (r"^output\.weight$", "decoder.output_projection.weight"),
    (r"final_norm", "layer_norm"),
    (r"self_attention_residual\.norm", "self_attn_layer_norm"),
    (r"cross_attention_residual\.norm", "encoder_attn_layer_norm"),
    (r"feed_forward_residual\.norm", "final_layer_norm"),
    (r"feed_forward\.up", "fc1"),
    (r"feed_forward\.down", "fc2"),
    (r"self_attention\.output", "self_attn.out_proj"),
    (r"cross_attention\.output", "encoder_attn.out_proj"),
    (r"cross_attention\.query", "encoder_attn.q_proj"),
)
_SPLIT = {
    "self_attention.qkv": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "cross_attention.key_value": ("encoder_attn", ("k_proj", "v_proj")),
}


def fairseq_flags(config: ModelConfig) -> list[str]:
    """Return the options of `fairseq-train` for a model of the same shape.

    Raises:
        UserError: fairseq has no such model.
    """
    if config.moe is not None or config.positions.name == "rotary" or config.activation == "swiglu":
        raise UserError(
            "model: fairseq's transformer has no experts, rotary positions or swiglu; compare a "
            "dense model with sinusoidal or learned positions and relu or gelu"
        )
    flags = ["--activation-fn", config.activation]
    flags += ["--max-source-positions", str(config.max_positions)]
    flags += ["--max-target-positions", str(config.max_positions)]
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        flags += [f"--{side}-layers", str(layers), f"--{side}-embed-dim", str(config.d_model)]
        flags += [f"--{side}-ffn-embed-dim", str(config.ffn_dim)]
        flags += [f"--{side}-attention-heads", str(config.num_heads)]
        flags += [f"--{side}-normalize-before"] * (config.norm_position == "pre")
        flags += [f"--{side}-learned-pos"] * (config.positions.name == "learned")
    shared = {"all": ["--share-all-embeddings"], "none": []}
    return flags + shared.get(config.share_embeddings, ["--share-decoder-input-output-embed"])


def fairseq_weights(model: nn.Module, config: ModelConfig) -> dict[str, Tensor]:
    """Return every parameter under fairseq's name, in float32."""
    # without a version fairseq assumes its oldest format and drops the last norms
    found = {f"{side}.version": torch.tensor([3.0]) for side in ("encoder", "decoder")}
    for name, parameter in model.named_parameters():
        value = parameter.detach().float()
        fused = next((part for part in _SPLIT if part in name), None)
        if fused is not None:
            module, parts = _SPLIT[fused]
            for part, rows in zip(parts, value.chunk(len(parts)), strict=True):
                found[name.replace(fused, f"{module}.{part}")] = rows.clone()
        elif name.endswith("positions.weight"):
            moved = torch.cat([value.new_zeros(FIRST_POSITION, value.size(1)), value])
            found[name.replace("positions", "embed_positions")] = moved
        else:
            for ours, theirs in _RENAMED:
                name = re.sub(ours, theirs, name)
            found[name] = value.clone()
    table = found["decoder.embed_tokens.weight"]
    if config.share_embeddings == "all":
        found["encoder.embed_tokens.weight"] = table.clone()
    if config.share_embeddings != "none":
        found["decoder.output_projection.weight"] = table.clone()
    return found
