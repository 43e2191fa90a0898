"""BitLinear against `AutoBitLinear` of transformers (online rounding, with and without its norm).

Runs in an environment that has transformers; of ds_seq only modules that need nothing but torch:

    PYTHONPATH=. VENV/bin/python benchmarks/parity/transformers_bitnet.py
"""

from __future__ import annotations

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # the peer compiles its roundings

import torch
import transformers
from torch import Tensor
from transformers.integrations.bitnet import AutoBitLinear

from ds_seq.modules.bitlinear import BitLinear, Bits

WIDTHS = (96, 200)  # inputs, outputs
ROWS = 64


def _error(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _case(normed: bool) -> tuple[float, float, float]:
    """Return the errors of the output, and of the gradients of weight and inputs."""
    generator = torch.Generator().manual_seed(1)
    theirs = AutoBitLinear(*WIDTHS, online_quant=True, use_rms_norm=normed, rms_norm_eps=1e-5)
    ours = BitLinear(*WIDTHS, bits=Bits("ternary", 8, "rms" if normed else "none"))
    with torch.no_grad():
        ours.weight.copy_(torch.randn(ours.weight.shape, generator=generator))
        ours.bias.copy_(torch.randn(ours.bias.shape, generator=generator))
        theirs.weight.copy_(ours.weight)
        theirs.bias.copy_(ours.bias)
    x, grad = torch.randn(ROWS, WIDTHS[0], generator=generator), torch.randn(ROWS, WIDTHS[1])
    found = []
    for each in (ours, theirs):
        inputs = x.clone().requires_grad_()
        output = each(inputs)
        output.backward(grad)
        found.append((output.detach(), each.weight.grad, inputs.grad))
    output, weight, inputs = (_error(a, b) for a, b in zip(*found, strict=True))
    return output, weight, inputs


def main() -> int:
    """Print the errors; 1 if one is above 1e-5."""
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, float32")
    worst = 0.0
    for normed in (False, True):
        errors = _case(normed)
        print(f"norm {str(normed):5}  " + "  ".join(f"{error:.1e}" for error in errors))
        worst = max(worst, *errors)
    return int(worst > 1e-5)


if __name__ == "__main__":
    raise SystemExit(main())
