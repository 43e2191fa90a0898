"""Parameter initialization from a seed.

Every module has its own random stream, determined by the model's seed and the module's name. So the
initial parameters do not depend on the order of construction, and a sparse model and a dense model
start with equal parameters in all modules they share.

Shapes: D model width.
"""

from __future__ import annotations

import hashlib
from typing import Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class DrawsParameters(Protocol):
    """A module that initializes its own parameters (not those of its children)."""

    def draw_parameters(self) -> None:
        """Draw new parameters from PyTorch's global random state or from a private generator."""


@runtime_checkable
class ScalesParameters(Protocol):
    """A module whose initial weights depend on the depth of deep models."""

    def scale_parameters(self, factor: float) -> None:
        """Multiply the weights that transform values, not those that make scores, by a factor."""


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Draw all parameters of `model` as fairseq does; the result depends only on `seed`.

    Embeddings, learned positions and an untied output projection: normal with deviation D ** -0.5,
    the padding row zero. Linear maps: Xavier uniform, biases zero; queries, keys and values with
    gain 2 ** -0.5. Each part of a fused map is drawn as a separate map. Layer norms: ones and
    zeros. PyTorch's global random state is restored.

    Our modules initialize themselves (`DrawsParameters`). Of PyTorch's modules, this function
    supports linear maps and layer norms.

    Raises:
        TypeError: a module has parameters but no initialization.
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
            "add a method draw_parameters"
        )
