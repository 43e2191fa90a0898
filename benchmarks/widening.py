"""A large model that computes the same function as a small one.

Chen et al., 2016, "Net2Net: Accelerating Learning via Knowledge Transfer",
https://arxiv.org/abs/1511.05641; here without the noise that separates the copies in training.

Shapes: D model width, r how many times wider.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.weights.fill import model_tensors

CLOSE = 1e-3  # between logits of the two, which are about 10
_TABLE = "target_embedding.weight"
_FUSED = {"attention.qkv": 3, "attention.key_value": 2}  # matrices stacked vertically


def grow(small: nn.Module, large: nn.Module) -> None:
    """Set the weights of a fresh pre-norm model so that it computes the same as a small one.

    Every vector of the large one is that of the small one repeated r times, which layer norms do
    not change, and so is every list of heads. Additional layers contribute 0.

    Args:
        small: model with sinusoidal positions and one embedding table.
        large: model r times as wide, with heads of the same width, learned positions, and at least
            as many layers.
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
    real = torch.ones_like(src, dtype=torch.bool)
    inputs = Seq2SeqInputs(src, real, src, real, src.numel())
    error = (small(inputs).logits - large(inputs).logits).abs().max()
    assert error < CLOSE, (
        f"the large model differs from the small one: logits differ by {error:.1e}"
    )


def _widened(name: str, value: Tensor, times: int) -> Tensor:
    """Return a parameter of the small model in the size of the large one."""
    if name == _TABLE:  # multiplied by sqrt(D) in the lookup
        return value.repeat(1, times) / math.sqrt(times)
    if name.startswith("decoder.final_norm"):  # compensates for it in the output projection
        return value.repeat(times) / math.sqrt(times)
    parts = value.chunk(next((n for part, n in _FUSED.items() if part in name), 1))
    if value.dim() == 1:
        return torch.cat([part.repeat(times) for part in parts])
    return torch.cat([part.repeat(times, times) for part in parts]) / times
