"""Give maps of a model low-rank changes, and merge them into the weights."""

from __future__ import annotations

import torch
from torch import nn

from ds_seq.config.model import TransformerConfig
from ds_seq.config.model.lora import LoraConfig
from ds_seq.modules.attention import CrossAttention, SelfAttention
from ds_seq.modules.convolution import Convolution
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.modules.linear import Linear
from ds_seq.modules.lora import Lora, LoraLinear, lora_scale
from ds_seq.modules.retention import Retention
from ds_seq.moe.experts import Experts
from ds_seq.moe.lora import ExpertsLora
from ds_seq.names import LoraModule


def add_lora(model: nn.Module, cfg: TransformerConfig) -> None:
    """Give the maps that the config names new changes, which change nothing yet."""
    for stack in cfg.stacks:
        lora = cfg.lora_of(stack)
        if lora is not None:
            for module in list(model.get_submodule(stack).modules()):
                _change(module, lora)


def _change(module: nn.Module, lora: LoraConfig) -> None:
    """Give a module's own maps their changes, if it is an attention or a feed-forward."""
    if isinstance(module, Experts) and "experts" in lora.modules:
        module.lora = ExpertsLora(module, lora.rank, _scale(lora))
    for name, parts in _parts(module):
        changed = [part in lora.modules for part in parts]
        if any(changed):
            map = module.get_submodule(name)
            assert isinstance(map, Linear)
            options = (lora.rank, _scale(lora), lora.dropout)
            change = Lora(map.in_features, map.widths, changed, *options)
            setattr(module, name, LoraLinear(map, change))


def _parts(module: nn.Module) -> list[tuple[str, list[LoraModule | None]]]:
    """Return the maps of a mixer or a feed-forward, and what their fused parts are.

    Gates of retention and convolution, and kernels, are none of the modules that can be changed.
    """
    if isinstance(module, SelfAttention):
        return [("qkv", ["query", "key", "value"]), ("output", ["output"])]
    if isinstance(module, Retention):
        return [("qkvg", ["query", "key", "value", None]), ("output", ["output"])]
    if isinstance(module, Convolution):
        parts: list[LoraModule | None] = ["value", *[None] * (len(module.input.widths) - 1)]
        return [("input", parts), ("output", ["output"])]
    if isinstance(module, CrossAttention):
        return [("query", ["query"]), ("key_value", ["key", "value"]), ("output", ["output"])]
    if isinstance(module, FeedForward):
        return [("up", ["up"] * len(module.up.widths)), ("down", ["down"])]
    return []


def _scale(lora: LoraConfig) -> float:
    return lora_scale(lora.alpha, lora.rank, lora.rank_stabilized)


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Merge all changes into the weights, in their precision; does nothing without changes."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                setattr(module, name, child.merged())
        if isinstance(module, Experts) and module.lora is not None:
            for weight, merged in zip((module.w1, module.w2), module.weights, strict=True):
                weight.copy_(merged)
            module.lora = None
