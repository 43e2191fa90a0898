"""Tensors of a Transformer of fairseq as those of our model.

fairseq has queries, keys and values in three matrices, where ours are one; its positions begin at
2; a gated feed-forward of its descendants has the value before the gate; and the parameters of an
expert are modules of their own.

Shapes: D model width, F inner width, H = F, or 2F if gated, E experts, P positions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ds_seq.compat.fairseq.model import FIRST_POSITION
from ds_seq.errors import UserError
from ds_seq.runs.formats.fairseq.adaptive import adaptive_source, left_of_adaptive
from ds_seq.runs.formats.fairseq.characters import character_source
from ds_seq.runs.formats.imported import Entry

_MODULES = {
    "self_attention.output": "self_attn.out_proj",
    "self_attention_residual.norm": "self_attn_layer_norm",
    "cross_attention.query": "encoder_attn.q_proj",
    "cross_attention.output": "encoder_attn.out_proj",
    "cross_attention_residual.norm": "encoder_attn_layer_norm",
    "feed_forward_residual.norm": "final_layer_norm",
    "final_norm": "layer_norm",
    "embedding_norm": "layernorm_embedding",
    "lm_head.dense": "lm_head.dense",
    "lm_head.norm": "lm_head.layer_norm",
}
"""Names of modules, ours and theirs, whose parameters are the same."""

_JOINED = {
    "self_attention.qkv": ("self_attn", "qkv"),
    "cross_attention.key_value": ("encoder_attn", "kv"),
}
# buffers, and copies of other tensors
_LEFT = (
    (r"(encoder|decoder)\.version", "version of the names"),
    (r"(encoder|decoder)\.embed_positions\._float_tensor", "empty"),
    (r"(encoder|decoder)\.embed_positions\.weights", "fixed positions, which are computed"),
    (r".*\.expert_counts", "statistics of the training"),
    (r".*\.conv\.conv_bias", "never read, although each dynamic convolution has one"),
    (r".*\.lora_[AB]", "already in the weight, which is stored with it added"),
    (r"classification_heads\..*", "of a task with classes, which there is none of here"),
)
_SAME = "the same as another one"
_MOST_NAMED = 8
_OUTPUTS = (
    "decoder.output_projection.weight",
    "decoder.embed_out",
    "decoder.fc3.weight",
    "lm_head.weight",
)


class Converter:
    """Makes the tensors of our model of those of fairseq.

    Args:
        state: tensors of fairseq by name.
        path: the checkpoint, for messages.
        is_gated: whether feed-forwards have two projections, the first of which is the value.

    Attributes:
        entries: what became of each tensor, in the order of the file.
    """

    def __init__(self, state: Mapping[str, Tensor], path: Path, is_gated: bool) -> None:
        self._state, self._path, self._is_gated = state, path, is_gated
        self._used: dict[str, Entry] = {}

    @property
    def entries(self) -> list[Entry]:
        """What became of each tensor, in the order of the file."""
        return [self._used[name] for name in self._state if name in self._used]

    def _stored(self, name: str) -> str:
        """Return the name of a tensor in the file, if the state has it by another one."""
        return name

    def make(self, name: str, shape: torch.Size) -> Tensor:
        """Return one of our tensors.

        Args:
            name: its name.
            shape: its shape.

        Raises:
            UserError: fairseq's file lacks a tensor for it, or has one of another shape.
        """
        adaptive = adaptive_source(name, shape, self._state)
        of_bytes = character_source(name, self._state)
        if of_bytes is not None:
            value = self._need([of_bytes], name)
        elif adaptive is None:
            value = self._make(name, shape)
        else:
            value = adaptive.part(self._need([adaptive.name], name, adaptive.how))
        if value.shape != shape:
            raise UserError(
                f"{self._path}: the tensors for {name} have the shape {tuple(value.shape)}, but "
                f"the arguments of the checkpoint say {tuple(shape)}; it belongs to another model, "
                "or --dict names another dictionary"
            )
        return value

    def finish(self) -> list[Entry]:
        """Return `entries`, after all of our tensors are made.

        Raises:
            UserError: a tensor of fairseq is used nowhere.
        """
        unknown = []
        for name, value in self._state.items():
            if name in self._used:
                continue
            reason = next((why for pattern, why in _LEFT if re.fullmatch(pattern, name)), None)
            reason = reason or left_of_adaptive(self._state).get(name)
            reason = reason or (_SAME if self._is_copy(name, value) else None)
            if reason is None:
                unknown.append(self._stored(name))
            else:
                self._used[name] = Entry(name, "", "left", reason)
        if unknown:
            raise UserError(
                f"{self._path}: has {_listed(unknown)}, which no model of ds_seq that its "
                "arguments describe has; it cannot be imported"
            )
        return self.entries

    def _make(self, name: str, shape: torch.Size) -> Tensor:
        special: dict[str, Callable[[str], Tensor]] = {
            r"(source|target)_embedding\.(factor\.)?weight": self._embedding,
            r"output\.weight": self._output,
            r"(target_embedding|output)\.bias": lambda n: self._need(["lm_head.bias"], n),
            r"(encoder|decoder)\.positions\.weight": lambda n: self._positions(n, shape),
            r".*\.feed_forward\.(up|down)\.(weight|bias)": lambda n: self._feed_forward(n, shape),
            r".*\.feed_forward\.gate\.weight": self._router,
            r".*\.feed_forward\.experts\.\w+": lambda n: self._experts(n, shape),
            r".*\.adapters\.for_.*": self._adapter,
        }
        for pattern, make in special.items():
            if re.fullmatch(pattern, name):
                return make(name)
        for ours, (module, parts) in _JOINED.items():
            if ours in name:
                return self._join(name, ours, module, parts)
        if "cross_attention.query." in name:
            place, kind = name.split("cross_attention.")[0], name.rpartition(".")[2]
            fused = self._take([f"{place}encoder_attn.in_proj_{kind}"], name)
            if fused is not None:
                return fused.chunk(3)[0]
        for ours, theirs in _MODULES.items():
            if f"{ours}." in name:
                return self._renamed(name, name.replace(ours, theirs))
        raise UserError(f"{self._path}: there is no tensor of fairseq for {name}")

    def _take(
        self, names: list[str], ours: str, how: str = "renamed", note: str = ""
    ) -> Tensor | None:
        """Return the first of these tensors that is there."""
        for theirs in names:
            value = self._state.get(theirs)
            if value is not None:
                if not value.is_floating_point() or not value.isfinite().all():
                    raise UserError(
                        f"{self._path}: {theirs} has values that are no finite floating-point "
                        "numbers; give another checkpoint of the training"
                    )
                how = "taken" if theirs == ours else how
                self._used.setdefault(theirs, Entry(theirs, ours, how, note))
                return value.detach().float()
        return None

    def _need(self, names: list[str], ours: str, how: str = "renamed", note: str = "") -> Tensor:
        value = self._take(names, ours, how, note)
        if value is None:
            raise UserError(f"{self._path}: lacks {names[0]}, which its arguments describe")
        return value

    def _renamed(self, ours: str, theirs: str) -> Tensor:
        old = re.sub(r"\.weight$", ".scale", theirs)  # of the norm of VarunGumma/fairseq
        return self._need([theirs, old], ours)

    def _join(self, name: str, ours: str, module: str, parts: str) -> Tensor:
        place, kind = name.split(ours)[0] + module, name.rpartition(".")[2]
        fused = self._take([f"{place}.in_proj_{kind}"], name)  # before fairseq 0.9
        if fused is not None:
            return fused if parts == "qkv" else torch.cat(fused.chunk(3)[1:])
        fused = self._take([f"{place}.{parts}_proj.{kind}"], name)  # of VarunGumma/fairseq
        if fused is not None:
            return fused
        names = [f"{place}.{part}_proj.{kind}" for part in parts]
        return torch.cat([self._need([each], name, "joined") for each in names])

    def _embedding(self, name: str) -> Tensor:
        stack = "encoder" if name.startswith("source") else "decoder"
        table = f"{stack}.embed_tokens"
        if ".factor." in name:
            return self._need([f"{table}.up.weight"], name)
        other = "encoder.embed_tokens.weight"  # one table that only the encoder's name has
        return self._need([f"{table}.weight", f"{table}.emb.weight", other], name)

    def _output(self, name: str) -> Tensor:
        return self._need(list(_OUTPUTS), name)

    def _positions(self, name: str, shape: torch.Size) -> Tensor:
        stack = name.partition(".")[0]
        theirs = f"{stack}.embed_positions.weight"
        table = self._need([theirs], name, note=f"without its first {FIRST_POSITION} rows")
        return table[FIRST_POSITION : FIRST_POSITION + shape[0]]

    def _feed_forward(self, name: str, shape: torch.Size) -> Tensor:
        place, _, rest = name.partition(".feed_forward.")
        part, kind = rest.split(".")
        old = {"up": "fc1", "down": "fc2"}[part]
        later = {"up": "up_gate_proj", "down": "down_proj"}[part]
        if not self._is_gated:
            return self._need([f"{place}.{old}.{kind}"], name)
        names = [f"{place}.glu_ffn_module.{old}.{kind}", f"{place}.glu.{later}.{kind}"]
        note = "gate and value change places" if part == "up" else ""
        value = self._take(names, name, "renamed", note)
        if value is None and kind == "bias" and f"{place}.glu.{later}.weight" in self._state:
            return torch.zeros(shape)  # the later gated feed-forward has none
        value = self._need(names, name, "renamed", note) if value is None else value
        return value if part == "down" else torch.cat(value.chunk(2)[::-1])

    def _router(self, name: str) -> Tensor:
        place = name.partition(".feed_forward.")[0]
        names = ("experts.deepspeed_moe.gate.wg.weight", "moe_layer.gate.wg.weight")
        return self._need([f"{place}.{each}" for each in names], name)

    def _experts(self, name: str, shape: torch.Size) -> Tensor:
        place, _, part = name.partition(".feed_forward.experts.")
        module = {"1": "0", "2": "3"}[part[1]]  # within the sequence of an expert of DeepSpeed
        kind = "weight" if part[0] == "w" else "bias"
        forms = (
            f"{place}.experts.deepspeed_moe.experts.deepspeed_experts.{{}}.{module}.{kind}",
            f"{place}.moe_layer.experts.{{}}.fc{part[1]}.{kind}",  # of the branch `moe`
        )
        values = [
            self._need([form.format(expert) for form in forms], name, "joined")
            for expert in range(shape[0])
        ]
        stacked = torch.stack(values)
        if kind == "bias":
            return stacked.unsqueeze(1)
        return stacked.transpose(1, 2) if part == "w1" else stacked

    def _adapter(self, name: str) -> Tensor:
        """Return a tensor of an adapter: `up` is its first map there, and here it is `down`."""
        place, _, rest = name.partition(".adapters.for_")
        adapter, part, kind = rest.split(".")
        module = {"down": "up", "up": "down", "norm": "layer_norm", "gate": "gate"}[part]
        return self._renamed(name, f"{place}.adapter_block.adapters.{adapter}.{module}.{kind}")

    def _is_copy(self, name: str, value: Tensor) -> bool:
        """Return whether a tensor that is not used equals one that is: shared, or stacked."""
        if name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", *_OUTPUTS):
            others = ["decoder.embed_tokens.weight", "encoder.embed_tokens.weight"]
        else:  # recurrent stacking: the layers are the first one
            others = [re.sub(r"\.layers\.\d+\.", ".layers.0.", name)]
        return any(
            other != name and other in self._used and torch.equal(self._state[other], value)
            for other in others
        )


def _listed(names: list[str]) -> str:
    """Return the names with commas, the first ones if there are many."""
    shown = ", ".join(names[:_MOST_NAMED])
    more = len(names) - _MOST_NAMED
    return shown if more <= 0 else f"{shown} and {more} more tensors"
