"""A large model that computes the same as a small one.

Chen et al., 2016, "Net2Net: Accelerating Learning via Knowledge Transfer",
https://arxiv.org/abs/1511.05641; here without the noise that lets the copies part in training.

Legend: D model width, r how many times wider.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

from ds_seq.weights.fill import model_tensors

CLOSE = 1e-3  # between logits of the two, which are about 10
_TABLE = "target_embedding.weight"
_FUSED = {"attention.qkv": 3, "attention.key_value": 2}  # matrices one below the other


def grow(small: nn.Module, large: nn.Module) -> None:
    """Let a fresh pre-norm model compute what a small one does.

    Every vector of the large one is the small one's r times in a row, which layer norms do not
    notice, and so is every list of heads. Layers that the small one has not add 0.

    Args:
        small: with sinusoidal positions and one table of embeddings.
        large: r times as wide, heads of the same width, learned positions, as many layers or more.
    """
    trained = dict(model_tensors(small))
    vocab_size, width = trained[_TABLE].shape
    times = large.get_parameter(_TABLE).size(1) // width
    for name, parameter in model_tensors(large):
        if name in trained:
            parameter.copy_(_widened(name, trained[name], times))
        elif name.endswith("positions.weight"):
            positions = small.get_submodule(name.removesuffix(".weight"))
            rows = positions(torch.zeros(1, len(parameter), width), 0, len(parameter))[0]
            parameter.copy_(rows.repeat(1, times))
        elif re.search(r"(attention\.output|feed_forward\.down)\.(weight|bias)$", name):
            parameter.zero_()
    src = torch.randint(4, vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    error = (small(src, src).logits - large(src, src).logits).abs().max()
    assert error < CLOSE, f"the large model is not the small one: logits differ by {error:.1e}"


def _widened(name: str, value: Tensor, times: int) -> Tensor:
    """A parameter of the small model as the large one has it."""
    if name == _TABLE:  # is multiplied by sqrt(D) where it is looked up
        return value.repeat(1, times) / math.sqrt(times)
    if name.startswith("decoder.final_norm"):  # makes up for that where the table scores
        return value.repeat(times) / math.sqrt(times)
    parts = value.chunk(next((n for part, n in _FUSED.items() if part in name), 1))
    if value.dim() == 1:
        return torch.cat([part.repeat(times) for part in parts])
    return torch.cat([part.repeat(times, times) for part in parts]) / times
