"""The peers' side of comparisons with copied weights: inputs, weights, and what is written.

Imported by the interpreters of the peers' environments: only torch and safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

LENGTHS, TARGETS = (9, 4, 7), (6, 8, 1)
_PADDING = 1


def drawn(model: nn.Module) -> nn.Module:
    """Draw all weights anew, so that no part is hidden by zeros or ones; return it in float64."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            base = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(base + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model.double().eval()


def _rows(lengths: tuple[int, ...], vocab: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return token ids (B, T), padded on the right, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, vocab, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, _PADDING), mask


def sequences(vocab: int) -> dict[str, Tensor]:
    """Return sources and targets with their masks."""
    (source, source_mask), (target, target_mask) = (
        _rows(LENGTHS, vocab, 2),
        _rows(TARGETS, vocab, 3),
    )
    return {
        "source": source,
        "source_mask": source_mask,
        "target": target,
        "target_mask": target_mask,
    }


def save_cases(cases: Mapping[str, tuple[nn.Module, dict[str, Tensor]]], out: str) -> None:
    """Compute the gradients of all cases, and write everything as `CASE/KIND/NAME`.

    Args:
        cases: model, and inputs with its `output`, by name.
        out: file to write.
    """
    tensors: dict[str, Tensor] = {}
    for case, (model, found) in cases.items():
        generator = torch.Generator().manual_seed(5)
        found["factors"] = torch.randn(found["output"].shape, generator=generator).double()
        (found["output"] * found["factors"]).sum().backward()
        for name, value in found.items():
            tensors[f"{case}/values/{name}"] = value.detach().clone()
        for name, parameter in model.named_parameters():
            tensors[f"{case}/weights/{name}"] = parameter.detach().clone()
            if parameter.grad is not None:
                tensors[f"{case}/gradients/{name}"] = parameter.grad.clone()
    save_file({k: v.contiguous() for k, v in tensors.items()}, out)
