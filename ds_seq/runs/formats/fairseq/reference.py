"""What a checkpoint of fairseq computes, in a few lines of plain torch.

An import ends by comparing with it: it reads fairseq's tensors by their own names and shares no
code with our models. One sentence pair at a time, no padding, no cache.

Shapes: S source length, T target length, L either, D model width, H heads, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.model import FIRST_POSITION
from ds_seq.runs.formats.fairseq.adaptive import (
    adaptive_embedded,
    adaptive_scores,
    has_adaptive_softmax,
)
from ds_seq.runs.formats.fairseq.characters import character_embedded
from ds_seq.runs.formats.fairseq.reference_convolution import convolved

_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_accurate": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "swish": F.silu,
}
_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "glu": torch.sigmoid,
    "reglu": F.relu,
    "geglu": F.gelu,
    "swiglu": F.silu,
}

_NORMS = ("self_attn_layer_norm", "final_layer_norm")
_NORMS_OF_CONVOLUTIONS = {
    "encoder": ("layer_norm1", "layer_norm2"),
    "decoder": ("conv_layer_norm", "final_layer_norm"),
}


class Reference:
    """A Transformer of fairseq.

    Args:
        state: its tensors by name, floating-point ones in float64.
        given: its arguments.
    """

    def __init__(self, state: Mapping[str, Tensor], given: Given) -> None:
        self._state, self._given = state, given

    @torch.no_grad()
    def logits(self, source: Sequence[int], target: Sequence[int]) -> Tensor:
        """Score every next token of a target.

        Args:
            source: S ids, with the end symbol.
            target: T ids, the end symbol first, as fairseq's decoder reads them.

        Returns:
            (T, V).
        """
        encoded = self._stack("encoder", torch.tensor(source), None)
        return self._project(self._stack("decoder", torch.tensor(target), encoded))

    def _project(self, decoded: Tensor) -> Tensor:
        if has_adaptive_softmax(self._state):
            return adaptive_scores(self._state, decoded)
        tables: tuple[str, ...] = ("decoder.output_projection.weight", "decoder.embed_out",
                  "decoder.embed_tokens.weight", "encoder.embed_tokens.weight")  # fmt: skip
        given = self._given
        if given["share_all_embeddings"] or given["share_decoder_input_output_embed"]:
            tables = tables[2:]
        return decoded @ next(self._state[name] for name in tables if name in self._state).T

    def _stack(self, stack: str, ids: Tensor, memory: Tensor | None) -> Tensor:
        given = self._given
        x = self._embed(stack, ids)
        if not given["no_scale_embedding"]:
            x = x * math.sqrt(x.size(-1))
        if not given["no_token_positional_embeddings"]:
            x = x + self._positions(stack, len(ids), x.size(-1))
        if given["layernorm_embedding"]:
            x = self._norm(f"{stack}.layernorm_embedding", x)
        repeats = given[f"{stack}_recurrent_stacking"] or 1
        count = 1 if repeats > 1 else given[f"{stack}_layers"]
        for layer in [*range(count)] * repeats:
            x = self._layer(stack, f"{stack}.layers.{layer}", x, memory)
        # some have none, although their layers begin with norms
        has_norm = (
            given[f"{stack}_normalize_before"] and f"{stack}.layer_norm.weight" in self._state
        )
        has_norm |= f"{stack}.layer_norm.scale" in self._state
        return self._norm(f"{stack}.layer_norm", x) if has_norm else x

    def _embed(self, stack: str, ids: Tensor) -> Tensor:
        place = f"{stack}.embed_tokens"
        if f"{place}.emb.weight" in self._state:
            return self._state[f"{place}.emb.weight"][ids] @ self._state[f"{place}.up.weight"].T
        embedded = adaptive_embedded(self._state, ids)
        embedded = character_embedded(self._state, ids) if embedded is None else embedded
        if embedded is not None:
            return embedded
        other = "encoder.embed_tokens.weight"
        return self._state[f"{place}.weight" if f"{place}.weight" in self._state else other][ids]

    def _positions(self, stack: str, length: int, width: int) -> Tensor:
        rows = torch.arange(FIRST_POSITION, FIRST_POSITION + length)
        if self._given[f"{stack}_learned_pos"]:
            return self._state[f"{stack}.embed_positions.weight"][rows]
        half = width // 2
        steps = torch.exp(torch.arange(half, dtype=torch.float) * -(math.log(10000) / (half - 1)))
        angles = rows.float().unsqueeze(1) * steps.unsqueeze(0)
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1).double()

    def _layer(self, stack: str, place: str, x: Tensor, memory: Tensor | None) -> Tensor:
        norms = _NORMS_OF_CONVOLUTIONS[stack] if f"{place}.linear1.bias" in self._state else _NORMS
        x = self._residual(
            stack, f"{place}.{norms[0]}", x, lambda y: self._mix(place, y, stack == "decoder")
        )
        if memory is not None:
            x = self._residual(
                stack, f"{place}.encoder_attn_layer_norm", x,
                lambda y: self._attend(f"{place}.encoder_attn", y, memory, is_causal=False),
            )  # fmt: skip
        x = self._residual(stack, f"{place}.{norms[1]}", x, lambda y: self._feed_forward(place, y))
        return self._adapt(stack, place, x)

    def _mix(self, place: str, x: Tensor, is_causal: bool) -> Tensor:
        if f"{place}.linear1.bias" in self._state:
            return convolved(self._state, self._given, place, x, is_causal)
        return self._attend(f"{place}.self_attn", x, x, is_causal)

    def _adapt(self, stack: str, place: str, x: Tensor) -> Tensor:
        """Pass through the adapter that was trained, if one was."""
        given = self._given
        if not given[f"{stack}_add_adapters"] or not given[f"{stack}_train_adapter"]:
            return x
        place = f"{place}.adapter_block.adapters.{given[f'{stack}_train_adapter']}"

        def body(y: Tensor) -> Tensor:
            y = self._map(f"{place}.up", y)
            y = self._map(f"{place}.down", _PLAIN[given["adapter_activation_fn"]](y))
            if given[f"{stack}_adapter_use_gating"]:  # a mean over the batch, of one sentence here
                y = y * torch.sigmoid(self._map(f"{place}.gate", y))
            return y

        return self._residual(stack, f"{place}.layer_norm", x, body)

    def _residual(
        self, stack: str, norm: str, x: Tensor, body: Callable[[Tensor], Tensor]
    ) -> Tensor:
        if self._given[f"{stack}_normalize_before"]:
            return x + body(self._norm(norm, x))
        return self._norm(norm, x + body(x))

    def _norm(self, place: str, x: Tensor) -> Tensor:
        state = self._state
        if f"{place}.scale" in state:  # of VarunGumma/fairseq
            return x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-8) * state[f"{place}.scale"]
        weight, bias = state[f"{place}.weight"], state.get(f"{place}.bias")
        if bias is None:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight
        return F.layer_norm(x, (x.size(-1),), weight, bias, 1e-5)

    def _map(self, place: str, x: Tensor) -> Tensor:
        return F.linear(x, self._state[f"{place}.weight"], self._state.get(f"{place}.bias"))

    def _attend(self, place: str, x: Tensor, memory: Tensor, is_causal: bool) -> Tensor:
        query, key, value = self._queries_keys_values(place, x, memory)
        heads = self._given[f"{place.partition('.')[0]}_attention_heads"]
        width = query.size(-1) // heads
        query, key, value = (y.view(len(y), -1, width).transpose(0, 1) for y in (query, key, value))
        key, value = (y.repeat_interleave(heads // len(y), 0) for y in (key, value))
        scores = query @ key.transpose(1, 2) / math.sqrt(width)
        if self._given["alibi_args"] is not None and place.endswith("self_attn"):
            scores = scores + _alibi(heads, len(x))
        if is_causal:
            scores = scores + torch.full_like(scores, -math.inf).triu(1)
        joined = (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)
        return self._map(f"{place}.out_proj", joined)

    def _queries_keys_values(self, place: str, x: Tensor, memory: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of three maps, of which some may be in one matrix."""
        fused = self._state.get(f"{place}.in_proj_weight")
        if fused is not None:  # before fairseq 0.9
            maps = zip(fused.chunk(3), self._state[f"{place}.in_proj_bias"].chunk(3), strict=True)
            inputs = (x, memory, memory)
            return tuple(F.linear(y, w, b) for y, (w, b) in zip(inputs, maps, strict=True))
        if f"{place}.qkv_proj.weight" in self._state:  # of VarunGumma/fairseq
            joined = self._map(f"{place}.qkv_proj", x)
            narrow = (joined.size(-1) - x.size(-1)) // 2
            return joined.split([x.size(-1), narrow, narrow], dim=-1)
        query = self._map(f"{place}.q_proj", x)
        if f"{place}.kv_proj.weight" in self._state:
            return (query, *self._map(f"{place}.kv_proj", memory).chunk(2, -1))
        return (query, *(self._map(f"{place}.{part}_proj", memory) for part in "kv"))

    def _activated(self, x: Tensor) -> Tensor:
        """Apply the activation of the feed-forwards, which has no gate."""
        return _PLAIN[self._given["activation_fn"]](x)

    def _feed_forward(self, place: str, x: Tensor) -> Tensor:
        name = self._given["activation_fn"]
        if f"{place}.experts.deepspeed_moe.gate.wg.weight" in self._state:
            modules = f"{place}.experts.deepspeed_moe.experts.deepspeed_experts"
            router, top_k = f"{place}.experts.deepspeed_moe.gate.wg.weight", self._given["top_k"]
            return self._experts(router, modules, ("0", "3"), top_k, F.relu, x)
        if f"{place}.moe_layer.gate.wg.weight" in self._state:
            modules, router = f"{place}.moe_layer.experts", f"{place}.moe_layer.gate.wg.weight"
            top_k = 1 if self._given["moe_top1_expert"] else 2
            return self._experts(router, modules, ("fc1", "fc2"), top_k, _PLAIN[name], x)
        if f"{place}.glu_ffn_module.fc1.weight" in self._state:
            value, gate = self._map(f"{place}.glu_ffn_module.fc1", x).chunk(2, -1)
            return self._map(f"{place}.glu_ffn_module.fc2", _GATES[name](gate) * value)
        if f"{place}.glu.up_gate_proj.weight" in self._state:
            value, gate = self._map(f"{place}.glu.up_gate_proj", x).chunk(2, -1)
            return self._map(f"{place}.glu.down_proj", value * _PLAIN[name](gate))
        return self._map(f"{place}.fc2", self._activated(self._map(f"{place}.fc1", x)))

    def _experts(
        self,
        router: str,
        modules: str,
        maps: tuple[str, str],
        top_k: int,
        activation: Callable[[Tensor], Tensor],
        x: Tensor,
    ) -> Tensor:
        """Send each token to its best experts, none of which is ever full."""
        probabilities = (x @ self._state[router].T).softmax(-1)
        weights, chosen = probabilities.topk(top_k, -1)
        if top_k > 1:
            weights = weights / weights.sum(-1, keepdim=True)
        rows = []
        for token, experts, shares in zip(x, chosen, weights, strict=True):
            outputs = [
                self._map(f"{place}.{maps[1]}", activation(self._map(f"{place}.{maps[0]}", token)))
                for place in (f"{modules}.{int(expert)}" for expert in experts)
            ]
            rows.append(shares @ torch.stack(outputs))
        return torch.stack(rows)


class LanguageReference(Reference):
    """A language model of fairseq: a decoder that attends to nothing else."""

    @torch.no_grad()
    def logits(self, source: Sequence[int], target: Sequence[int]) -> Tensor:
        """Score every next token of `target`; see `Reference.logits`. There is no source."""
        return self._project(self._stack("decoder", torch.tensor(target), None))


def _alibi(heads: int, length: int) -> Tensor:
    """Return what is added to scores (H, L, L): minus slope times distance, for 2^n heads first."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (n + 1) / power) for n in range(power)]
    slopes += [2 ** (-4 * (2 * n + 1) / power) for n in range(heads - power)]
    places = torch.arange(length, dtype=torch.float64)
    distances = (places[:, None] - places[None, :]).abs()
    return -torch.tensor(slopes, dtype=torch.float64)[:, None, None] * distances
