"""gpu.py: the expert layer compared with the dense one and with bare grouped products.

Shapes: N tokens, D model, F feed-forward, E experts.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.config.model import MoeConfig, TransformerConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.modules.body import BodyOutput, Context

from .bench import Bench, Sizes
from .measure import Call, count_waits, median_ms, profile

_SENTENCE = 8  # tokens
_REAL = 0.98  # share of real tokens; the others are padding


def moe_layer(bench: Bench) -> None:
    """Time a layer with few and with many experts at the smaller batch sizes."""
    for count in bench.sizes.tokens[:2]:
        _LayerTimes(bench, count).measure()


def feed_forward(sizes: Sizes, moe: MoeConfig | None) -> nn.Module:
    """Return a feed-forward layer as in a model, in training mode."""
    fields: dict[str, Any] = {
        **sizes.model,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "activation": "relu",
        "dropout": 0.0,
        "moe": moe,
    }
    layer = (
        build_seq2seq(
            TransformerConfig(**fields),
            vocab_size=8,
            expert_parallel=1,
            expert_parallel_rank=0,
            seed=1,
        )
        .encoder.layers[0]
        .feed_forward
    )
    assert isinstance(layer, nn.Module)
    return layer.train()


class _LayerTimes:
    """Times of all layers on one batch.

    Args:
        bench: sizes and results.
        count: number of tokens N.
    """

    def __init__(self, bench: Bench, count: int) -> None:
        self._bench, self._count = bench, count
        device, width = bench.device, bench.sizes.model["d_model"]
        shape = max(count // _SENTENCE, 1), _SENTENCE
        self._x = torch.randn(*shape, width, device=device, dtype=torch.bfloat16)
        self._real = torch.rand(shape, device=device) < _REAL
        self._flops = 3 * 4 * count * width * bench.sizes.model["ffn_dim"]

    def measure(self) -> None:
        """Time all layers at this size."""
        few, many = self._bench.sizes.experts
        self._time("dense bf16", self._step(self._on_device(None), torch.bfloat16))
        for number in (few, many):
            for factor in (1.25, None):
                self._experts(number, factor)
            if self._bench.device.type == "cuda":
                self._time(f"bare grouped_mm x{number}", self._bare_products(number))

    def _on_device(self, moe: MoeConfig | None) -> nn.Module:
        return feed_forward(self._bench.sizes, moe).to(self._bench.device, torch.bfloat16)

    def _experts(self, number: int, factor: float | None) -> None:
        moe = MoeConfig(num_experts=number, placement="encoder", every=1, capacity_factor=factor)
        layer = self._on_device(moe)
        name = f"moe x{number} bf16 {'dropless' if factor is None else 'capacity'}"
        step = self._step(layer, torch.bfloat16)
        self._time(name, step, {"waits": sum(count_waits(step).values())})
        is_last = self._count == self._bench.sizes.tokens[:2][-1]
        if factor is None and is_last:
            self._bench.figures[f"{name} profile"] = profile(step, 12)
        if factor is None and number == self._bench.sizes.experts[0]:
            half = copy.deepcopy(layer).to(torch.float16)
            self._time(f"moe x{number} fp16 dropless (loop)", self._step(half, torch.float16))

    def _step(self, layer: nn.Module, dtype: torch.dtype) -> Call:
        rows = self._x.to(dtype, copy=True).requires_grad_()

        def step() -> None:
            output: BodyOutput = layer(rows, Context(token_mask=self._real))
            total: Tensor = output.y.float().sum()
            if output.aux is not None:
                total = total + sum(output.aux.losses.values())
            total.backward()
            layer.zero_grad(set_to_none=True)

        return step

    def _bare_products(self, number: int) -> Call:
        """Return a lower bound of the layer: sort, two grouped products, inverse sort."""
        flat = self._x.flatten(0, 1)
        shape = number, flat.shape[1], self._bench.sizes.model["ffn_dim"]
        up, down = (
            torch.randn(shape, device=flat.device, dtype=flat.dtype, requires_grad=True)
            for _ in range(2)
        )
        owner = torch.randint(number, (len(flat),), device=flat.device)

        def step() -> None:
            order = owner.argsort()
            ends = torch.bincount(owner, minlength=number).cumsum(0).to(torch.int32)
            rows = flat.index_select(0, order).requires_grad_()
            hidden = F.relu(F.grouped_mm(rows, up, offs=ends))
            y = F.grouped_mm(hidden, down.transpose(1, 2), offs=ends)
            torch.empty_like(y).index_copy(0, order, y).backward(flat)
            up.grad = down.grad = None

        return step

    def _time(self, name: str, step: Call, more: dict[str, Any] | None = None) -> None:
        ms = median_ms(step, 3, 8)
        tflops = round(self._flops / ms / 1e9, 1)
        entry = {"ms": round(ms, 3), "tflops": tflops, **(more or {})}
        self._bench.figures[f"{self._count}/{name}"] = entry
