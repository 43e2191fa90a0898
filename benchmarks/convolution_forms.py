"""Ways to compute a lightweight or dynamic convolution, forward and backward, on a CPU.

    python benchmarks/convolution_forms.py

The forms compute the same: `bands` is ours (`ds_seq.modules.convolution`), `windows` is a product
per token, `depthwise` is PyTorch's convolution with one group per channel, `shifts` adds up shifted
copies of the text. The last two know fixed kernels only. All take turns in one process with one
thread, and processor time is compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from common import Goal, Spread, add_common_arguments, finish, table
from torch import Tensor
from turns import take_turns

from ds_seq.modules.convolution import convolve

OURS = "bands"
# sentences, tokens, channels, heads, size of the kernel
SHAPES = ((32, 32, 512, 8, 3), (32, 32, 512, 8, 31), (64, 12, 512, 8, 31), (1, 2048, 512, 8, 31))
SHORT = {(32, 32, 512, 8, 3)}  # kernels of three tokens, where a band has ten times as many zeros
Form = Callable[[Tensor, Tensor], Tensor]


def _padded(x: Tensor, size: int) -> Tensor:
    return F.pad(x, (0, 0, size - 1, 0))


def windows(x: Tensor, kernels: Tensor) -> Tensor:
    """Multiply the tokens under each kernel by it; kernels are (B, T, H, S) or (1, 1, H, S)."""
    num_heads, size = kernels.shape[2:]
    under = _padded(x, size).unfold(1, size, 1).unflatten(2, (num_heads, -1))
    return (under @ kernels[..., None]).squeeze(-1).flatten(2)


def depthwise(x: Tensor, kernels: Tensor) -> Tensor:
    """Apply PyTorch's convolution; kernels are (1, 1, H, S)."""
    _, _, num_heads, size = kernels.shape
    weight = kernels[0, 0].repeat_interleave(x.size(2) // num_heads, 0)[:, None]
    return F.conv1d(_padded(x, size).mT, weight, groups=x.size(2)).mT


def shifts(x: Tensor, kernels: Tensor) -> Tensor:
    """Add up shifted copies; kernels are (1, 1, H, S)."""
    num_heads, size = kernels.shape[2:]
    heads = _padded(x, size).unflatten(2, (num_heads, -1))
    terms = (heads[:, k : k + x.size(1)] * kernels[..., k, None] for k in range(size))
    return torch.stack(list(terms)).sum(0).flatten(2)


def bands(x: Tensor, kernels: Tensor) -> Tensor:
    """Apply ours."""
    return convolve(x, kernels, kernels.size(-1) - 1)


FIXED: Mapping[str, Form] = {
    OURS: bands,
    "depthwise": depthwise,
    "shifts": shifts,
    "windows": windows,
}
DYNAMIC: Mapping[str, Form] = {OURS: bands, "windows": windows}


def _pass(form: Form, x: Tensor, kernels: Tensor, weights: Tensor) -> None:
    torch.autograd.grad(form(x, kernels), (x, kernels), weights)


def _measured(
    shape: tuple[int, ...], forms: Mapping[str, Form], is_fixed: bool, rounds: int
) -> dict[str, Spread]:
    """Return the processor time of each form, relative to ours."""
    batch, length, channels, heads, size = shape
    x = torch.randn(batch, length, channels, requires_grad=True)
    tokens = (1, 1) if is_fixed else (batch, length)
    kernels = torch.randn(*tokens, heads, size, requires_grad=True)
    weights = torch.randn_like(x)
    expected = bands(x, kernels)
    for name, form in forms.items():
        torch.testing.assert_close(form(x, kernels), expected, atol=1e-3, rtol=1e-3, msg=name)
    sides = {name: partial(_pass, form, x, kernels, weights) for name, form in forms.items()}
    taken = take_turns(sides, rounds).turns
    own = [turn.cpu_seconds for turn in taken[OURS]]
    return {
        name: Spread.of([turn.cpu_seconds / each for turn, each in zip(turns, own, strict=True)])
        for name, turns in taken.items()
    }


def main(argv: Sequence[str]) -> int:
    """Measure, print, and record on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each form")
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    rows, goals = [], []
    for shape in SHAPES:
        for kind, forms in (("fixed", FIXED), ("dynamic", DYNAMIC)):
            spent = _measured(shape, forms, kind == "fixed", 3 if args.quick else args.rounds)
            text = " x ".join(map(str, shape[:3]))
            cells = [f"{spent[name].median:.2f}" if name in spent else "" for name in FIXED]
            rows.append([text, f"{shape[4]}", kind, *cells])
            fastest = min(spread.median for spread in spent.values())
            if shape not in SHORT:
                name = f"{kind} kernels, {text}: ours to the fastest"
                goals.append(Goal(name, 1 / fastest, 1.1, "x", at_least=False))
    header = ["sentences x tokens x channels", "kernel", "kernels", *FIXED]
    body = "Forward and backward, processor time relative to ours:\n\n" + table(header, rows)
    return finish("Forms of a convolution", body, goals, args.record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
