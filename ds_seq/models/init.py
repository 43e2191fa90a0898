"""How a model starts: every parameter, drawn from a seed.

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


@runtime_checkable
class DrawsParameters(Protocol):
    """A module that says itself how its own parameters start (not those of its children)."""

    def draw_parameters(self) -> None:
        """Draw them anew, from PyTorch's global random state or from a generator of its own."""


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Draw all parameters of `model` as fairseq does, as a function of `seed` alone.

    Embeddings, learned positions and an untied output: normal with deviation D ** -0.5, the
    padding row zero. Linear maps: Xavier uniform, biases zero; queries, keys and values with gain
    2 ** -0.5. Fused maps are drawn part by part, each as if it stood alone. Layer norms: one and
    zero. PyTorch's global random state is left as it was.

    Our own modules say so themselves (`DrawsParameters`); of PyTorch's, plain linear maps and
    layer norms are known here.

    Raises:
        TypeError: a module owns parameters that nobody knows how to draw.
    """
    with torch.random.fork_rng(devices=[]):
        for name, module in model.named_modules():
            digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            torch.default_generator.manual_seed(int.from_bytes(digest[:7], "little"))
            if isinstance(module, DrawsParameters):
                module.draw_parameters()
            else:
                _draw_foreign(module)


def _draw_foreign(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
    elif next(module.parameters(recurse=False), None) is not None:
        raise TypeError(
            f"no initialization is defined for {type(module).__name__}; "
            "give it a method draw_parameters"
        )
