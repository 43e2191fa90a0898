"""All initialisation of dense parameters, in one place.

Every module draws from its own stream, given by the seed of the model and the module's name. So
the start does not depend on the order of construction, and a sparse model and its dense twin
start equal wherever they have the same modules.

Shapes: D model width.
"""

from __future__ import annotations

import hashlib
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.modules.attention import CrossAttention, SelfAttention
from ds_seq.modules.embedding import TokenEmbedding
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.modules.positions import LearnedPositions
from ds_seq.moe.gate import Router

_ATTENTION_GAIN = 2**-0.5
_OUTPUT = (0, 0.0)  # marks the map to the vocabulary, which is drawn like an embedding


@runtime_checkable
class DrawsByExpert(Protocol):
    """A module that holds experts and draws them itself, by their global index."""

    def reset_parameters_by_expert(self) -> None:
        """Draw all experts anew."""


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Draw all parameters of `model` as fairseq does, as a function of `seed` alone.

    Embeddings, learned positions and an untied output: normal with deviation D ** -0.5, the
    padding row zero. Linear maps: Xavier uniform, biases zero; queries, keys and values with gain
    2 ** -0.5. Fused maps are drawn part by part, each as if it stood alone. Layer norms: one and
    zero. PyTorch's global random state is left as it was.

    Raises:
        TypeError: a module owns parameters that nothing here knows how to draw.
    """
    special = _special_linears(model)
    with torch.random.fork_rng(devices=[]):
        for name, module in model.named_modules():
            digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            torch.default_generator.manual_seed(int.from_bytes(digest[:7], "little"))
            if isinstance(module, DrawsByExpert):
                module.reset_parameters_by_expert()
            elif isinstance(module, nn.Linear) and special.get(module) == _OUTPUT:
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            elif isinstance(module, nn.Linear):
                _draw_linear(module, *special.get(module, (1, 1.0)))
            else:
                _draw_other(module)


def _special_linears(model: nn.Module) -> dict[nn.Module, tuple[int, float]]:
    """Linear maps that are several fused ones or have a gain: (number of parts, gain)."""
    special: dict[nn.Module, tuple[int, float]] = {}
    for module in model.modules():
        if isinstance(module, SelfAttention):
            special[module.qkv] = (3, _ATTENTION_GAIN)
        elif isinstance(module, CrossAttention):
            special[module.query] = (1, _ATTENTION_GAIN)
            special[module.key_value] = (2, _ATTENTION_GAIN)
        elif isinstance(module, FeedForward) and module.activation == "swiglu":
            special[module.up] = (2, 1.0)
        elif isinstance(module, Seq2SeqTransformer) and module.output is not None:
            special[module.output] = _OUTPUT
    return special


def _draw_linear(module: nn.Linear, parts: int, gain: float) -> None:
    for part in module.weight.chunk(parts, dim=0):
        nn.init.xavier_uniform_(part, gain)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _draw_other(module: nn.Module) -> None:
    if isinstance(module, TokenEmbedding | LearnedPositions):
        nn.init.normal_(module.weight, std=module.weight.size(1) ** -0.5)
        if isinstance(module, TokenEmbedding):
            module.weight[module.pad_id].zero_()
    elif isinstance(module, nn.LayerNorm | Router):
        module.reset_parameters()
    elif next(module.parameters(recurse=False), None) is not None:
        raise TypeError(f"no initialisation is defined for {type(module).__name__}")
