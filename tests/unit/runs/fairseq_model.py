"""Tensors and arguments of Transformers of fairseq, as its checkpoints have them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WIDTH, INNER, WORDS = 8, 12, 20


def arguments(**more: Any) -> argparse.Namespace:
    """Arguments of a small model with two encoder layers and one decoder layer."""
    values = {
        "arch": "transformer", "source_lang": "en", "target_lang": "de", "data": "somewhere",
        "encoder_embed_dim": WIDTH, "decoder_embed_dim": WIDTH, "encoder_ffn_embed_dim": INNER,
        "decoder_ffn_embed_dim": INNER, "encoder_layers": 2, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_source_positions": 64,
        "max_target_positions": 64, "activation_fn": "relu", "dropout": 0.1,
        "share_all_embeddings": True, "label_smoothing": 0.1, "lr": [0.1], "no_progress_bar": True,
    }  # fmt: skip
    return argparse.Namespace(**{**values, **more})


class Tensors:
    """Makes random tensors by fairseq's names."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self._draw = torch.Generator().manual_seed(3)

    def add(self, name: str, *shape: int) -> None:
        """Add a tensor."""
        self.state[name] = torch.randn(*shape, generator=self._draw) * 0.3

    def linear(self, place: str, rows: int, columns: int) -> None:
        """Add a weight and a bias."""
        self.add(f"{place}.weight", rows, columns)
        self.add(f"{place}.bias", rows)

    def norm(self, place: str) -> None:
        """Add a layer norm."""
        self.add(f"{place}.weight", WIDTH)
        self.add(f"{place}.bias", WIDTH)

    def attention(self, place: str) -> None:
        """Add an attention."""
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            self.linear(f"{place}.{part}", WIDTH, WIDTH)

    def layers(self, stack: str, count: int, num_experts: int = 0) -> None:
        """Add the layers of a stack, every second one with experts if there are any."""
        self.state[f"{stack}.version"] = torch.tensor([3.0])
        for number in range(count):
            place = f"{stack}.layers.{number}"
            self.attention(f"{place}.self_attn")
            self.norm(f"{place}.self_attn_layer_norm")
            if stack == "decoder":
                self.attention(f"{place}.encoder_attn")
                self.norm(f"{place}.encoder_attn_layer_norm")
            if num_experts and number % 2:
                moe = f"{place}.experts.deepspeed_moe"
                self.add(f"{moe}.gate.wg.weight", num_experts, WIDTH)
                for expert in range(num_experts):
                    self.linear(f"{moe}.experts.deepspeed_experts.{expert}.0", INNER, WIDTH)
                    self.linear(f"{moe}.experts.deepspeed_experts.{expert}.3", WIDTH, INNER)
            else:
                self.linear(f"{place}.fc1", INNER, WIDTH)
                self.linear(f"{place}.fc2", WIDTH, INNER)
            self.norm(f"{place}.final_layer_norm")


def shared_model(num_experts: int = 0, decoder_layers: int = 1) -> dict[str, Tensor]:
    """Tensors of the model of `arguments`: post-norm, one table."""
    tensors = Tensors()
    tensors.add("encoder.embed_tokens.weight", WORDS + 4, WIDTH)
    tensors.layers("encoder", 2, num_experts)
    tensors.layers("decoder", decoder_layers, num_experts)
    state = tensors.state
    state["decoder.embed_tokens.weight"] = state["encoder.embed_tokens.weight"]
    state["decoder.output_projection.weight"] = state["encoder.embed_tokens.weight"]
    state["encoder.embed_positions._float_tensor"] = torch.zeros(1)
    return state


def write(folder: Path, state: dict[str, Tensor], given: argparse.Namespace) -> Path:
    """Write a checkpoint and its dictionary; return the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"word{number} {WORDS - number}\n" for number in range(WORDS))
    (folder / "dict.txt").write_text(lines, encoding="utf-8")
    path = folder / "checkpoint_best.pt"
    history = [{"num_updates": 12}]
    torch.save({"args": given, "model": state, "optimizer_history": history}, path)
    return path
